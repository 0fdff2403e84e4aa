"""Whole mirrors of the simulated network: what the tables hold in the end."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from protocol.encoding.record_json import body_cid
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance

FETCHED_TO_INDEXED = """
select r.did, extract(epoch from r.completed_at - min(c.indexed_at::timestamptz))::float8
from sluice.repo r join sluice.record c using (did)
where r.phase = 'sync' and r.attempt = 1
group by r.did
"""
"""A row's `indexed_at` is its message's time: that of the fetch. `completed_at`: of the index transaction with the repo's last."""


def test_hostile_records_keep_their_cid(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """NUL, 2^63-1, bytes, links, 90 kB texts, odd dates, deep nesting, look-alikes and floats: every row is there, and
    what is stored hashes to the CID that the account signed.

    B10: what a first attempt fetched is indexed within a minute, while the stream goes on, and no transaction is long."""
    simulation = simulator(seed=5, repos=60, records_per_repo=20, hostile=True, labelers=0, writer_rate=20)
    one: Mirror = mirror(simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix())
    one.up()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 30, 120, one.last_lines)
    time_written = simulation.summary()["steps"]
    wait_for(lambda: simulation.summary()["steps"] > time_written + 100, 120)
    one.quiesce()
    one.await_truth()
    waits = dict(one.query(FETCHED_TO_INDEXED))
    assert len(waits) > 30
    assert max(waits.values()) < 60, waits
    assert 0 < one.count("index", "sluice_index_transaction_seconds_sum") < 60, "all of them together"
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


REASONS = {
    "leaf_raw": ("raw_block", False, True),
    "leaf_foreign": ("foreign_cid", False, False),
    "leaf_unordered": ("not_canonical", True, True),
    "leaf_large": ("too_large", False, False),
    "leaf_repeated": (None, True, False),
}
"""kind → (reason, is there JSON, is there a block) of its rows."""


def test_odd_leaves_are_mirrored_live_and_from_snapshots_and_the_audit_proves_them(
    simulator: Any, log: str, database: str, mirror: Any
) -> None:
    """G3, G7: raw bytes, another hash, CBOR out of order, 3 MiB, one block under many paths.

    From the PDS and from the stream the rows are the same, the neighbours are there, an audit is clean and repairs nothing,
    and the AppView shows what the official one reads.
    """
    simulation = simulator(seed=8, repos=20, records_per_repo=5, labelers=0, inactive_share=0.0)
    dids = list(simulation.state())
    paths = {
        (did, kind): simulation.op("odd_leaf", did=did, kind=kind)["paths"]
        for did, kind in zip(dids, REASONS, strict=False)
    }
    one: Mirror = mirror(simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix(), appview=True)
    one.up()
    wait_for(lambda: one.alive() and one.phases() == {"sync": 20}, 120, one.last_lines)
    live = dict(zip(dids[10:], REASONS, strict=False))
    for did, kind in live.items():
        paths[did, kind] = simulation.op("odd_leaf", did=did, kind=kind)["paths"]
    one.await_truth()
    rows = {
        (did, path): (reason, text, block)
        for did, path, reason, text, block in one.query(
            "select did, collection || '/' || rkey, reason, json is not null, raw is not null from sluice.record"
        )
    }
    for (did, kind), created in paths.items():
        assert {rows[did, path] for path in created} == {REASONS[kind]}, (did, kind)
    assert all(found == (None, True, False) for (did, path), found in rows.items() if did in dids[5:10])
    refetched = [
        kind for did, kind in live.items() if one.query("select attempt from sluice.repo where did = %s", did) != [(1,)]
    ]
    # no event can carry the first, and the bodies of the second are more than an event may become; the others were applied
    assert refetched == ["leaf_large", "leaf_repeated"]
    said = one.cli("audit", "--all", "--repair", "--json", seconds=120)
    report = json.loads(said.stdout)
    assert (said.returncode, report["proven"], report["differing"], report["repaired"]) == (0, 20, 0, 0), said.stdout
    assert report["without_body"] == 4
    posts = {
        f"at://{did}/{path}" for (did, kind), created in paths.items() if kind == "leaf_unordered" for path in created
    }
    assert len(posts) == 2
    assert {reason for (reason,) in one.query("select reason from sluice.dead_letter")} <= {"message_too_large"}
    wait_for(lambda: {uri for (uri,) in one.query("select uri from bsky.post")} >= posts, 120, one.last_lines)
    assert one.interrupt() == 0


def test_what_is_written_before_the_firehose_connects_is_found(
    simulator: Any, log: str, database: str, mirror: Any
) -> None:
    """G1: repos are fetched, then they write, and only then the firehose connects for the first time, at the tip."""
    simulation = simulator(seed=6, repos=40, records_per_repo=5, labelers=0, inactive_share=0.0)
    one: Mirror = mirror(
        simulation,
        kafka_bootstrap=log,
        database=database,
        kafka_topic_prefix=prefix(),
        list_page_size=5,  # only the last page of a finished listing is read again and again
        list_relist_seconds=3600.0,
    )
    one.run("control")
    wait_for(lambda: one.single[0].look().ready, 120, one.last_lines)  # the topics are there
    for kind in ("index", "backfill", "list-repos"):
        one.run(kind)
    wait_for(lambda: one.phases() == {"sync": 40}, 120, one.last_lines)
    written = [simulation.op("create", did=did)["did"] for did in [*simulation.state()][:10]]
    one.run("firehose")
    busy = [*simulation.state()][20]

    def begun() -> bool:
        simulation.op("create", did=busy)  # a quiet stream would be read from its oldest event
        return bool(one.query("select 1 from sluice.cursor where flow = 'firehose' and position::bigint > 10"))

    wait_for(begun, 120, one.last_lines)
    one.await_truth(120)
    assert one.query("select count(*) from sluice.repo where attempt > 1 and did = any(%s)", written) == [(10,)]
