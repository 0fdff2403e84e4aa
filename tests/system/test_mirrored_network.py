"""Whole mirrors of the simulated network: what the tables hold in the end."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from fix_mirror import Mirror, prefix, wait_for

from steps.record_json import body_cid

pytestmark = pytest.mark.acceptance


def test_hostile_records_keep_their_cid(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """NUL, 2^63-1, bytes, links, 90 kB texts, odd dates, deep nesting, look-alikes and floats: every row is there, and
    what is stored hashes to the CID that the account signed."""
    simulation = simulator(seed=5, repos=60, records_per_repo=20, hostile=True, labelers=0, writer_rate=20)
    one: Mirror = mirror(simulation, bootstrap=log, database=database, topic_prefix=prefix())
    one.up()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 30, 60, one.last_lines)
    time_written = simulation.summary()["steps"]
    wait_for(lambda: simulation.summary()["steps"] > time_written + 100, 30)
    one.quiesce()
    one.await_truth()
    kinds: dict[str | None, int] = {}
    with psycopg.connect(database) as db:
        rows = db.execute("select did, collection, rkey, cid, json::text, raw, reason from sluice.record")
        for did, collection, rkey, cid, text, raw, reason in rows:
            body = None if text is None else text.encode()
            assert body_cid(body, raw) == cid, (did, collection, rkey, reason, text and text[:200])
            kinds[reason] = kinds.get(reason, 0) + 1
            assert (raw is not None) == (reason is not None), (did, collection, rkey)
        longest = db.execute("select max(length(json::text)) from sluice.record").fetchone()
    assert kinds.keys() >= {None, "dollar_key", "float"}, kinds
    assert longest is not None
    assert longest[0] > 75_000
    assert one.query("select count(*) from sluice.record where collection = 'unknown.lexicon.thing'")[0][0] > 0
    assert one.query("select count(*) from sluice.dead_letter") == [(0,)]
    assert one.interrupt() == 0
