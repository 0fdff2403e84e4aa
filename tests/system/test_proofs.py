"""What was mirrored from a network that fails is proven by audit, survives replays, and can be made again from the log alone."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.support.mirror_truth import changes, contents
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance

FAULTS: dict[str, Any] = {
    "pds_500": {"every": 20},
    "pds_truncate": {"every": 30},
    "pds_stale": {"p": 0.2},
    "drop": {"every": 200},
    "garbage": {"every": 40},
    "lost_commit": {"every": 25},
    "duplicate": {"every": 20},
    "delay": {"every": 25},
    "label_garbage": {"every": 20},
    "handle_false": {"every": 4},
    "handle_contended": {"every": 4},
}
EQUAL = {
    "record": "select did, collection, rkey, cid, json::text, raw, rev from sluice.record order by 1, 2, 3",
    "repo": "select did, active, status, rev, data from sluice.repo where phase = 'sync' order by 1",
    "label": "select * from sluice.label order by 1, 2, 3, 4",
}


def tables(database: str) -> dict[str, list[tuple]]:
    """What a rebuild has to give back. Records of repos that are not in sync are no promise."""
    with psycopg.connect(database) as db:
        synced = {did for (did,) in db.execute("select did from sluice.repo where phase = 'sync'")}
        found = {name: db.execute(statement).fetchall() for name, statement in EQUAL.items()}
    return found | {"record": [row for row in found["record"] if row[0] in synced]}


def wrong_handles(one: Mirror, simulation: Any) -> dict[str, Any]:
    """Active accounts whose claimed handle, or whether its domain agrees, is not as in truth."""
    stored = {did: (handle, ok) for did, handle, ok in one.query("select did, handle, verified from sluice.handle")}
    truth = {did: (told.handle, told.handle_verified) for did, told in simulation.state().items() if told.active}
    return {did: (stored.get(did), told) for did, told in truth.items() if stored.get(did) != told}


def repaired(one: Mirror) -> None:
    """A row that was tampered with is found, its repo fetched again by the running mirror, and equal again."""
    did, collection, rkey, body = one.query(
        "select did, collection, rkey, json::text from sluice.record join sluice.repo using (did)"
        " where phase = 'sync' and json is not null order by 1, 2, 3 limit 1"
    )[0]
    row = "sluice.record where did = %s and collection = %s and rkey = %s"
    one.query(f"update {row.replace(' where', ' set json = %s where')}", '{"tampered": true}', did, collection, rkey)
    said = one.cli("audit", did, "--repair", "--json", seconds=180)
    report = json.loads(said.stdout)
    assert (said.returncode, report["differing"], report["repaired"]) == (1, 1, 1), said.stderr
    wait_for(lambda: one.query(f"select json::text from {row}", did, collection, rkey) == [(body,)], 60, one.last_lines)
    wait_for(lambda: one.query("select phase from sluice.repo where did = %s", did) == [("sync",)], 60, one.last_lines)
    assert one.cli("audit", did).returncode == 0


@pytest.mark.timeout(600)
def test_proofs(simulator: Any, log: str, database: str, blank_database: str, mirror: Any) -> None:
    """G2, G3, N4, N5, U4: deletions, desyncs, several attempts; audit, repair, handles, replays beside the index, rebuild."""
    simulation = simulator(
        seed=31, repos=150, records_per_repo=20, labels=60, churn=0.08, faults=FAULTS, writer_rate=60
    )
    one: Mirror = mirror(simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix())
    one.up()
    one.started()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 110, 120, one.last_lines)
    steps = simulation.summary()["steps"]
    wait_for(lambda: simulation.summary()["steps"] > steps + 500, 60)
    one.quiesce()
    one.await_truth(90)
    assert set(FAULTS) <= simulation.faults()["fired"].keys()
    attempts = one.query("select count(*) filter (where attempt > 1), count(*) from sluice.repo where phase = 'sync'")[
        0
    ]
    assert attempts[0] > 5, attempts

    said = one.cli("audit", "--all", "--against-pds", "--json", seconds=180)
    report = json.loads(said.stdout)
    assert (said.returncode, report["good"], report["findings"]) == (0, True, []), said.stderr
    assert report["repos"] == report["compared"] == attempts[1]
    assert report["records"] == report["bodies"] > 1000
    wait_for(
        lambda: not wrong_handles(one, simulation), 120, lambda: str(list(wrong_handles(one, simulation).items())[:8])
    )
    assert one.status()["handles"]["unverified"] >= 2
    repaired(one)

    before = contents(database)
    for topic in ("firehose_backfill", "firehose_live", "label_live", "repo_backfill", "repo_resync", "dead_letter"):
        said = one.cli("replay", topic, "--json", seconds=180)
        assert said.returncode == 0, said.stderr
        done = json.loads(said.stdout)
        print(topic, done)
        assert done["messages"] > 10, topic
        assert done["sent"] == 0
        assert not (found := changes(before, contents(database))), "\n".join([topic, *found])
    part, end = one.query(
        "select part, next from sluice.stream_offset where topic like '%%firehose_live' and next > 10 limit 1"
    )[0]
    said = one.cli(
        "replay", "firehose_live", "--from-offset", f"{part}:{end - 5}", "--to", f"{part}:{end + 5}", "--json"
    )
    assert json.loads(said.stdout)["messages"] == 5  # never beyond the index's own position
    said = one.cli("replay", "firehose_live", "--from-time", "2100-01-01T00:00:00Z", "--json")
    assert json.loads(said.stdout)["messages"] == 0

    letters = json.loads(one.cli("dead-letters", "list", "--json").stdout)
    assert {letter["reason"] for letter in letters} >= {"undecodable"}
    assert one.interrupt() == 0

    said = one.cli("replay", "--all", "--into", blank_database, "--json")
    rebuilt = json.loads(said.stdout or "{}")
    assert said.returncode == (1 if rebuilt["unfinished"] else 0), said.stderr
    assert rebuilt["unfinished"] == {}
    first, second = tables(database), tables(blank_database)
    for name in EQUAL:
        assert len(first[name]) > 50
        assert second[name] == first[name], name
    again = one.cli("replay", "--all", "--into", blank_database)
    assert (again.returncode, "not empty" in again.stderr) == (2, True)
    said = one.cli("audit", "--all", "--json")
    assert json.loads(said.stdout)["good"]
