"""The worked example of docs/own-lexicon.md, run as printed there, beside a running index."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from connectors.kafka.producer import LogProducer, Out
from schemas import wire
from schemas.settings import load
from simulator.repo.records import bulk, make_subjects
from tests.support import ROOT
from tests.support.flow_fixtures import FlowBed

PAGE = ROOT / "docs" / "own-lexicon.md"
RECIPE = "com.example.recipe"
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
OTHER = "bafyreic2xjmzqxqqqslhwxuuaoy6dmqwlsqaxhvqvhjkqgcfrkbsd7qmxu"
TIME = "2026-01-01T00:00:00.000Z"
DID = "did:plc:cook"
SECONDS = 60

Rows = list[tuple[Any, ...]]


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def created(rkey: str, record: bytes, collection: str = RECIPE) -> Out:
    event = wire.CreateEvent(
        did=DID, attempt=1, rev="3l22222222222", collection=collection, rkey=rkey, cid=CID, time=TIME, commit=CID,
        record=msgspec.Raw(record),
    )  # fmt: skip
    return Out("firehose_backfill", DID, wire.encode(event))


def synced(count: int) -> Out:
    event = wire.RepoOutcome(
        did=DID, attempt=1, status="synced", active=True, time=TIME, rev="3l22222222222", commit=CID, data="root-0", count=count
    )  # fmt: skip
    return Out("firehose_backfill", DID, wire.encode(event))


def commit(*ops: wire.Op) -> Out:
    event = wire.CommitEvent(
        seq=1, time=TIME, did=DID, rev="3l33333333333", commit=CID, commit_block="oA", data="root-1", prev_data="root-0",
        ops=list(ops),
    )  # fmt: skip
    return Out("firehose_live", DID, wire.encode(event))


def recipes(database: psycopg.Connection[Any]) -> Rows:
    return database.execute("SELECT rkey, title, minutes, ingredients FROM recipes.recipe ORDER BY rkey").fetchall()


def await_recipes(database: psycopg.Connection[Any], wanted: Rows) -> None:
    """The wanted rows, and nothing left to do."""
    deadline = time.monotonic() + SECONDS
    left = "SELECT count(*) FROM recipes.changed"
    while (recipes(database), database.execute(left).fetchone()) != (wanted, (0,)):
        assert time.monotonic() < deadline, (recipes(database), wanted)
        time.sleep(0.1)


@contextmanager
def module(folder: Path, database: str) -> Iterator[subprocess.Popen[bytes]]:
    """The module as a process, killed in the end."""
    script = folder / "recipes.py"
    script.write_text(block("python"))
    process = subprocess.Popen([sys.executable, str(script), database])
    try:
        yield process
        assert process.poll() is None, "it ended by itself"
    finally:
        process.kill()
        process.wait()


def test_a_lexicon_of_ones_own_gets_its_table(flow_bed: FlowBed, tmp_path: Path) -> None:
    """N10: history from before the migration, live writes, changes and deletions, a kill, and a table filled again."""
    flow_bed.start("index")
    producer = LogProducer(load(**flow_bed.base))
    producer.send([
        created("bread", rb'{"title":"Bread","minutes":90,"ingredients":["flour","water"]}'),
        created("soup", rb'{"title":"Soup","minutes":"many","ingredients":"water"}'),
        created("odd", rb'["no", "recipe"]'),
        created("note", rb'{"title":"no recipe, but named alike"}', "com.example.note"),
        synced(4),
    ])  # fmt: skip
    database = flow_bed.db
    deadline = time.monotonic() + SECONDS
    while database.execute("SELECT count(*) FROM sluice.repo WHERE phase = 'sync'").fetchone() != (1,):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    database.execute(block("sql").encode())
    bread, soup = ("bread", "Bread", 90, ["flour", "water"]), ("soup", "Soup", None, [])
    with module(tmp_path, flow_bed.base["database"]):
        await_recipes(database, [bread, soup])
    changes = [
        wire.Op(
            action="update", collection=RECIPE, rkey="soup", cid=OTHER, record=msgspec.Raw(rb'{"title":"So\u0000up"}')
        ),
        wire.Op(action="delete", collection=RECIPE, rkey="bread"),
        wire.Op(
            action="create",
            collection=RECIPE,
            rkey="tea",
            cid=OTHER,
            record=msgspec.Raw(rb'{"title":"Tea","minutes":5}'),
        ),
    ]
    producer.send([commit(*changes)])  # the module was killed and does not see it
    deadline = time.monotonic() + SECONDS
    while database.execute("SELECT count(*) FROM recipes.changed").fetchone() != (3,):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert recipes(database) == [bread, soup]
    wanted: Rows = [("soup", "Soup", None, []), ("tea", "Tea", 5, [])]
    with module(tmp_path, flow_bed.base["database"]):
        await_recipes(database, wanted)
        database.execute("TRUNCATE recipes.recipe")
        again = re.search(r"^insert into recipes\.changed.*?;$", block("sql"), re.MULTILINE)
        assert again is not None
        database.execute(again[0].encode())
        await_recipes(database, wanted)


@pytest.mark.parametrize("record", [None, 1, "text", [], {}, {"title": 1}, {"title": None, "minutes": {}}])
def test_a_record_that_is_no_recipe_has_no_row(record: object) -> None:
    """G7: anybody may write anything; the example does not stumble over it."""
    names: dict[str, Any] = {"__name__": "recipes"}
    exec(block("python"), names)  # the example itself is under test
    assert names["row"](record) is None


def test_what_no_column_takes_is_left_out() -> None:
    """G7: as above, for values that are only partly odd."""
    names: dict[str, Any] = {"__name__": "recipes"}
    exec(block("python"), names)  # the example itself is under test
    odd = {"title": "a\0\ud800", "minutes": True, "ingredients": ["flour", 1, None, "\0"]}
    assert names["row"](odd) == ("a?", None, ["flour", ""])
    assert names["row"]({"title": "", "minutes": 2**31, "ingredients": 5}) == ("", None, [])


def test_the_simulated_network_has_recipes() -> None:
    """Its accounts write the lexicon of the page, in records that the page's module reads."""
    scope: dict[str, Any] = {"__name__": "recipes"}
    exec(block("python"), scope)
    records = bulk(random.Random(7), 400, 1_780_000_000_000_000, make_subjects([DID], 7))
    found = [scope["row"](record) for path, record in records if path.startswith(f"{RECIPE}/")]
    assert len(found) > 3
    for title, minutes, ingredients in found:
        assert title
        assert minutes > 0
        assert ingredients
