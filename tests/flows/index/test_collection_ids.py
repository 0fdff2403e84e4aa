"""Collections as numbers: the same for every worker, bounded in memory."""

from __future__ import annotations

import threading

import psycopg
import pytest

from flows.index.collection_ids import CollectionIds
from schemas.settings import Settings


def test_workers_agree_on_the_number_of_a_name(database: str) -> None:
    """G6: four at once, each with names of its own order; what is not in the memory is read again."""
    names = [f"com.example.n{number}" for number in range(200)]
    found: list[dict[str, int]] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        ids = CollectionIds(Settings(database=database))
        start.wait(30)
        mine: dict[str, int] = {}
        for at in range(0, 200, 20):
            piece = [names[(at + n) * (number + 1) % 200] for n in range(20)]
            mine |= ids.of(piece)
        found.append(mine | ids.of(names))
        ids.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 2, 6, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert all(one == found[0] for one in found)
    with psycopg.connect(database) as db:
        assert dict(db.execute("select name, id from sluice.collection").fetchall()) == found[0]


def test_memory_is_bounded(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """G6."""
    monkeypatch.setattr("flows.index.collection_ids.KEPT", 10)
    ids = CollectionIds(Settings(database=database))
    names = [f"com.example.n{number}" for number in range(50)]
    first = ids.of(names)
    assert len(first) == 50
    assert len(ids._cache) == 10
    assert ids.of(names) == first
    ids.close()
