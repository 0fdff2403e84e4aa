"""What was mirrored from a network that fails is proven by audit, survives replays, and can be made again from the log alone.

All tests look at the same mirror, in this order.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.support.log_positions import Positions, log_ends, stored
from tests.support.mirror_truth import changes, contents
from tests.support.postgres import fresh_database
from tests.support.simulation import Simulation, simulations
from tests.support.whole_mirror import Mirror, mirrors, prefix, wait_for

pytestmark = pytest.mark.acceptance

FAULTS: dict[str, Any] = {
    "pds_500": {"every": 20},
    "pds_429": {"every": 35, "retry_after": 1},
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
    one.query(
        "update sluice.record_row set json = %s where rkey = %s and repo = (select id from sluice.repo where did = %s)"
        " and collection = (select id from sluice.collection where name = %s)",
        *('{"tampered": true}', rkey, did, collection),
    )
    said = one.cli("audit", did, "--repair", "--json", seconds=180)
    report = json.loads(said.stdout)
    assert (said.returncode, report["differing"], report["repaired"]) == (1, 1, 1), said.stderr
    wait_for(
        lambda: one.query(f"select json::text from {row}", did, collection, rkey) == [(body,)], 120, one.last_lines
    )
    wait_for(lambda: one.query("select phase from sluice.repo where did = %s", did) == [("sync",)], 120, one.last_lines)
    assert one.cli("audit", did).returncode == 0


class World(NamedTuple):
    """A mirror at rest that equals its network, and where its log and tables are."""

    simulation: Simulation
    mirror: Mirror
    log: str
    prefix: str
    database: str

    def replay(self, *arguments: str) -> dict[str, Any]:
        """The report of `sluice replay`, which has to succeed."""
        said = self.mirror.cli("replay", *arguments, "--json", seconds=180)
        assert said.returncode == 0, said.stderr
        report: dict[str, Any] = json.loads(said.stdout)
        return report


@pytest.fixture(scope="module")
def world(log: str, postgres: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """G1: deletions, desyncs and several attempts under every fault; at rest the tables equal the network."""
    with ExitStack() as closing:
        database = closing.enter_context(fresh_database(postgres, migrated_template))
        simulator = closing.enter_context(simulations())
        mirror = closing.enter_context(mirrors(tmp_path_factory.mktemp("proofs")))
        simulation = simulator(
            seed=31, repos=120, records_per_repo=20, labels=60, churn=0.08, faults=FAULTS, writer_rate=60
        )
        name = prefix()
        one = mirror(simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=name)
        one.up()
        one.started()
        wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 85, 120, one.last_lines)
        steps = simulation.summary()["steps"]
        wait_for(lambda: simulation.summary()["steps"] > steps + 400, 120)
        one.quiesce()
        one.await_truth(120)
        yield World(simulation, one, log, name, database)


@pytest.mark.timeout(600)
def test_proofs(world: World, blank_database: str) -> None:
    """G2, G3, N4, N5, U4: audit, repair, handles, replays beside the index, and a rebuild from the log alone."""
    one, simulation = world.mirror, world.simulation
    assert set(FAULTS) <= simulation.faults()["fired"].keys()
    again = "select count(*) filter (where attempt > 1), count(*) from sluice.repo where phase = 'sync'"
    retried, synced = one.query(again)[0]
    assert retried > 5

    said = one.cli("audit", "--all", "--against-pds", "--json", seconds=180)
    report = json.loads(said.stdout)
    assert (said.returncode, report["good"], report["findings"]) == (0, True, []), said.stderr
    assert report["repos"] == report["compared"] == synced
    assert report["records"] == report["bodies"] > 1000
    wait_for(
        lambda: not wrong_handles(one, simulation), 120, lambda: str(list(wrong_handles(one, simulation).items())[:8])
    )
    assert one.status()["handles"]["unverified"] >= 2
    repaired(one)

    before = contents(world.database)
    for topic in ("firehose_backfill", "firehose_live", "label_live", "repo_backfill", "repo_resync", "dead_letter"):
        done = world.replay(topic)
        print(topic, done)
        assert done["messages"] > 10, topic
        assert done["sent"] == 0
        assert not (found := changes(before, contents(world.database))), "\n".join([topic, *found])
    part, end = one.query(
        "select part, next from sluice.stream_offset where topic like '%%firehose_live' and next > 10 limit 1"
    )[0]
    some = world.replay("firehose_live", "--from-offset", f"{part}:{end - 5}", "--to", f"{part}:{end + 5}")
    assert some["messages"] == 5  # never beyond the index's own position
    assert world.replay("firehose_live", "--from-time", "2100-01-01T00:00:00Z")["messages"] == 0

    letters = json.loads(one.cli("dead-letters", "list", "--json").stdout)
    assert {letter["reason"] for letter in letters} >= {"undecodable"}
    wait_for(lambda: stored(world.database) == log_ends(world.log, world.prefix), 120, "the log is not settled")
    assert one.interrupt() == 0
    rebuild(world, blank_database)


def rebuild(world: World, empty: str) -> None:
    """The log alone gives the same tables in an empty database."""
    one = world.mirror
    said = one.cli("replay", "--all", "--into", empty, "--json", seconds=180)
    rebuilt = json.loads(said.stdout or "{}")
    assert said.returncode == (1 if rebuilt["unfinished"] else 0), said.stderr
    assert rebuilt["unfinished"] == {}
    first, second = tables(world.database), tables(empty)
    for name in EQUAL:
        assert len(first[name]) > 50
        assert second[name] == first[name], name
    again = one.cli("replay", "--all", "--into", empty)
    assert (again.returncode, "not empty" in again.stderr) == (2, True)
    said = one.cli("audit", "--all", "--json", seconds=180)
    assert json.loads(said.stdout)["good"]


@pytest.mark.timeout(600)
def test_replays_change_nothing(world: World) -> None:
    """G2: every topic from 0, each topic alone, and random offsets, into the live database: no row changes."""
    one, database = world.mirror, world.database
    if one.leader is not None and one.leader.poll() is None:  # the test before has failed
        assert one.interrupt() == 0
    before = contents(database)
    assert all(len(before[table]) > 50 for table in ("record", "repo", "label"))
    ends = log_ends(world.log, world.prefix)
    assert stored(database) == ends, "what is already in the log has been settled"
    rng = random.Random(22)
    replays = {
        "every topic from 0": dict.fromkeys(ends, 0),
        **{f"{topic} alone": {part: 0 for part in ends if part[0] == topic} for topic in {part[0] for part in ends}},
        **{f"random offsets {n}": {part: rng.randint(0, end) for part, end in ends.items()} for n in range(2)},
    }
    assert len(replays) == 6
    for replay, positions in replays.items():
        with psycopg.connect(database) as db:
            for (topic, part), position in positions.items():
                moved = db.execute(
                    "update sluice.stream_offset set next = %s where topic = %s and part = %s", (position, topic, part)
                )
                assert moved.rowcount == 1
        drain(one, database, ends, sum(ends[part] - position for part, position in positions.items()))
        assert not (found := changes(before, contents(database))), "\n".join([replay, *found])
    rows = {table: len(found) for table, found in before.items()}
    print(f"{sum(ends.values())} messages, {len(replays)} replays; rows {rows}")


def drain(one: Mirror, database: str, ends: Positions, messages: int) -> None:
    """Run an index until the tables stand at the log's ends, and stop it. It must have settled that many messages."""
    index = one.run("index")
    wait_for(lambda: index.running and stored(database) == ends, 120, lambda: f"{stored(database)} {one.last_lines()}")
    # counted after the transaction that moved the tables
    wait_for(lambda: index.metric("sluice_indexed_events_total") >= messages, 120, f"less than {messages} were settled")
    assert index.terminate() == 0
