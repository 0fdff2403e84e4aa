"""Backup and restore: a dump of the running database, and the log from where the dump stands, or without that part of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from local.embedded.embedded_database import find_binaries
from tests.support.log_positions import log_ends, stored
from tests.support.postgres import fresh_database
from tests.support.size import sized
from tests.support.whole_mirror import Mirror, prefix, wait_for
from tests.system.test_two_workers import stop

pytestmark = pytest.mark.acceptance
KINDS = ("control", "index", "backfill", "firehose", "labels", "list-repos")
REPOS = sized(120, 250)


def forget_log(bootstrap: str, ends: dict[tuple[str, int], int]) -> None:
    """What retention does: everything that the log has now is removed."""
    places = [TopicPartition(topic, part, end) for (topic, part), end in ends.items() if end]
    client = AdminClient({"bootstrap.servers": bootstrap})  # kept: a client that is collected never answers
    for removed in client.delete_records(places).values():
        removed.result(60)


def other_log(database: str, old: str, new: str) -> None:
    """The positions of the dump are those in another cluster's log, of the same names as the new one's."""
    with psycopg.connect(database, autocommit=True) as db:
        moved = db.execute(
            "update sluice.stream_offset set cluster = 'gone', group_id = replace(group_id, %(old)s, %(new)s),"
            " topic = replace(topic, %(old)s, %(new)s)",
            {"old": old, "new": new},
        ).rowcount
    assert moved > 0


GAPS = {"kept": set(), "moved past": {"retention passed the index"}, "lost": {"the log is another one"}}
"""What became of the log → why the restored mirror says that events are missing."""


@pytest.mark.timeout(900)
def test_a_dump_and_the_log_are_the_mirror(
    simulator: Any, log: str, postgres: str, database: str, mirror: Any, tmp_path: Path
) -> None:
    """G2: dumped under load, carried on, restored elsewhere, all processes at once: the network's state.

    Three times from one dump: the log as it is, the log whose retention has passed what the dump had not read, and
    another log.
    """
    simulation = simulator(seed=71, repos=REPOS, records_per_repo=10, labels=60, churn=0.03, writer_rate=40)
    simulation.set_faults(pds_slow={"p": 0.3, "seconds": 1})  # so that it is dumped in the middle, however late we look
    name = prefix()
    one: Mirror = mirror(
        simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=name, backfill_concurrency=3
    )
    for kind in KINDS:
        one.run(kind)
    wait_for(lambda: one.phases().get("sync", 0) > 0.15 * REPOS, 120, one.last_lines)
    file = tmp_path / "sluice.backup"
    said = one.cli("backup", str(file), seconds=120)
    assert said.returncode == 0, said.stderr
    simulation.set_faults(clear=True)
    wait_for(lambda: one.phases().get("sync", 0) > 0.7 * REPOS, 120, one.last_lines)
    stop(one)
    after = one.query("select count(*) from sluice.repo where phase = 'sync'")[0][0]

    for fate in GAPS:
        with fresh_database(postgres) as restored:
            new = prefix() if fate == "lost" else name
            two: Mirror = mirror(simulation, kafka_bootstrap=log, database=restored, kafka_topic_prefix=new)
            said = two.cli("restore", str(file), "--database", restored, seconds=120)
            assert said.returncode == 0, said.stderr
            begun, ends = two.phases(), log_ends(log, name)
            behind = sum(ends.values()) - sum(stored(restored).values())
            print(f"{fate}: restored {begun}, {behind} messages to read; before {after} in sync")
            assert behind > 100, "the dump lacks nothing"
            assert begun.get("sync", 0) < after
            if fate != "kept":
                # labels that the log has lost no listing can find (docs/operating.md)
                for labeler in simulation.labelers:
                    reset = two.cli("cursors", "reset", "labels", labeler, "--yes")
                    assert reset.returncode == 0, reset.stderr
            if fate == "moved past":
                forget_log(log, ends)
            if fate == "lost":
                other_log(restored, name, new)
            simulation.writer(40)
            assert_restored(two, fate)


def assert_restored(two: Mirror, fate: str) -> None:
    """All processes at once, then none: the tables are the network's, and what the log lacked is known and filled."""
    for kind in KINDS:
        two.run(kind)
    wait_for(lambda: two.phases().get("sync", 0) > 0.85 * REPOS, 120, two.last_lines)
    gaps = two.query("select distinct reason from sluice.stream_gap where upstream like 'log:%%'")
    assert {reason for (reason,) in gaps} == GAPS[fate], fate
    two.quiesce()
    two.await_truth(120)
    assert two.query("select count(*) from sluice.cursor where flow = 'restore'") == [(0,)]
    audit = two.cli("audit", "--all", "--json", seconds=120)
    assert audit.returncode == 0, audit.stdout[-2000:] + audit.stderr[-2000:]
    stop(two)


def test_the_tools_come_with_the_embedded_server() -> None:
    for name in ("pg_dump", "pg_restore"):
        assert os.access(find_binaries() / name, os.X_OK)
