"""What was settled once changes nothing when it is read again, from any offset."""

from __future__ import annotations

import random
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tests.support.mirror_truth import changes, contents
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance

FAULTS: dict[str, Any] = {
    "pds_500": {"p": 0.05},
    "pds_429": {"p": 0.03, "retry_after": 1},
    "pds_truncate": {"p": 0.03},
    "pds_stale": {"p": 0.2},
    "drop": {"every": 200},
    "garbage": {"every": 90},
    "lost_commit": {"every": 50},
    "duplicate": {"every": 20},
    "delay": {"every": 25},
}


def test_replays_change_nothing(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """G2: every topic from 0, each topic alone, and random offsets, into the live database: no row changes."""
    simulation = simulator(
        seed=22, repos=200, records_per_repo=20, labels=100, churn=0.05, faults=FAULTS, writer_rate=60
    )
    name = prefix()
    one: Mirror = mirror(simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=name)
    one.up()
    one.started()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 150, 120, one.last_lines)
    steps = simulation.summary()["steps"]
    wait_for(lambda: simulation.summary()["steps"] > steps + 500, 60)
    one.quiesce()
    one.await_truth(90)
    wait_for(lambda: stored(database) == log_ends(log, name), 60, "what says nothing new is left in the log")
    assert one.interrupt() == 0
    before = contents(database)
    assert all(len(before[table]) > 50 for table in ("record", "repo", "label"))
    ends = log_ends(log, name)
    total = sum(ends.values())
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
    print(f"{total} messages, {len(replays)} replays; rows { ({table: len(rows) for table, rows in before.items()}) }")


def drain(one: Mirror, database: str, ends: dict[tuple[str, int], int], messages: int) -> None:
    """Run an index until the tables stand at the log's ends, and stop it. It must have settled that many messages."""
    index = one.run("index")
    wait_for(lambda: index.running and stored(database) == ends, 90, lambda: f"{stored(database)} {one.last_lines()}")
    # counted after the transaction that moved the tables
    wait_for(lambda: index.metric("sluice_indexed_events_total") >= messages, 60, f"less than {messages} were settled")
    assert index.terminate() == 0


def log_ends(bootstrap: str, name: str) -> dict[tuple[str, int], int]:
    """(topic, partition) → end, of what the index reads."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    topics = [name + topic for topic in ("firehose_backfill", "firehose_live", "label_live")]
    parts = [(topic, part) for topic in topics for part in admin.list_topics(timeout=60).topics[topic].partitions]
    asked = admin.list_offsets({TopicPartition(*part): OffsetSpec.latest() for part in parts})
    return {(part.topic, part.partition): future.result(60).offset for part, future in asked.items()}


def stored(database: str) -> dict[tuple[str, int], int]:
    """(topic, partition) → the offset that stands in the tables."""
    with psycopg.connect(database) as db:
        return {
            (topic, part): at for topic, part, at in db.execute("select topic, part, next from sluice.stream_offset")
        }
