"""The index flow on a real broker and a real database: what arrives is in the tables once, whatever is killed or sent."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from connectors.kafka.log import cluster_id
from connectors.kafka.producer import LogProducer, Out
from flows.index.store import IndexStore
from flows.index.stream_offsets import PartitionLost
from protocol.syntax import tid_from_micros
from schemas import wire
from schemas.settings import Settings, load
from steps.partitioner import partition_of
from tests.support.flow_process import FlowProcess, create_topics, group_positions, read_topic, wait_until
from tests.support.size import sized

PARTITIONS = 4
REPOS = sized(150, 400)
CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
TIME = "2026-01-01T00:00:00.000Z"


# so that a transaction takes a second, and a kill comes in the middle of one
SLOW = """
create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(1); return null; end $$;
create trigger slow after update on sluice.stream_offset for each statement execute function slow();
"""


@dataclass
class World:
    settings: Settings
    producer: LogProducer
    logs: Path
    started: list[FlowProcess] = field(default_factory=list)

    def sql(self, statement: str, *values: object) -> list[tuple]:
        with psycopg.connect(self.settings.database, autocommit=True) as db:
            cursor = db.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def index(self, **more: object) -> FlowProcess:
        settings = self.settings.replaced(**more)
        given = {*more, "tuning"} & {*Settings.model_fields}
        settings.__pydantic_fields_set__.update(given)  # decides what reaches the process
        self.started.append(FlowProcess("index", settings, self.logs))
        return self.started[-1]

    def settled(self, topic: str) -> int:
        name = self.settings.topic(topic)
        return self.sql("select coalesce(sum(next), 0)::bigint from sluice.stream_offset where topic = %s", name)[0][0]

    def wait_settled(self, topic: str, messages: int) -> None:
        wait_until(lambda: self.settled(topic) >= messages, what=f"{messages} settled of {topic}", of=self.started[-1:])


@pytest.fixture
def world(log: str, database: str, tmp_path: Path) -> Iterator[World]:
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, PARTITIONS)
    settings = load(
        kafka_bootstrap=log,
        database=database,
        kafka_topic_prefix=prefix,
        transport_session_seconds=6,
        epoch_seconds=0.1,
    )
    made = World(settings, LogProducer(settings), tmp_path / "index.log")
    yield made
    for process in made.started:
        if process.running:
            process.kill()


def did(number: int) -> str:
    return f"did:plc:{number:024d}"


def create(number: int, rkey: str, rev: str = "3l22222222222", **more: object) -> Out:
    event = wire.CreateEvent(
        did=did(number), attempt=1, rev=rev, collection="app.bsky.feed.post", rkey=rkey, cid=CID, time=TIME, commit=CID,
        record=msgspec.Raw(b'{"text":"hello"}'), **more,
    )  # fmt: skip
    return Out("firehose_backfill", did(number), wire.encode(event))


def outcome(number: int, count: int, rev: str = "3l22222222222") -> Out:
    event = wire.RepoOutcome(
        did=did(number),
        attempt=1,
        status="synced",
        active=True,
        time=TIME,
        rev=rev,
        commit=CID,
        data="root-0",
        count=count,
    )
    return Out("firehose_backfill", did(number), wire.encode(event))


def snapshot(number: int, records: int) -> list[Out]:
    return [*(create(number, f"3k{n:011d}") for n in range(records)), outcome(number, records)]


def live_rev(step: int) -> str:
    return tid_from_micros((1 << 50) + (20 << 45) + step)


def commit(number: int, step: int, rkey: str, *, prev_step: int | None = None) -> Out:
    before = step - 1 if prev_step is None else prev_step
    event = wire.CommitEvent(
        seq=step, time=TIME, did=did(number), rev=live_rev(step), commit=CID, commit_block="oA", data=f"root-{step}",
        prev_data=f"root-{before}",
        ops=[wire.Op(action="create", collection="app.bsky.feed.post", rkey=rkey, cid=CID, record=msgspec.Raw(b'{"n":1}'))],
    )  # fmt: skip
    return Out("firehose_live", did(number), wire.encode(event))


def test_snapshots_and_live_events_reach_the_tables(world: World) -> None:
    """B6: three streams into PostgreSQL; the group's offsets follow the tables."""
    backfill = [message for number in range(20) for message in snapshot(number, 10)]
    world.producer.send(backfill)
    index = world.index()
    world.wait_settled("firehose_backfill", len(backfill))
    world.producer.send([commit(number, 1, "live") for number in range(20)])
    label = wire.LabelEvent(seq=1, src="did:plc:labeler", uri=did(0), val="spam", cts=TIME)
    world.producer.send([Out("label_live", did(0), wire.encode(label))])
    world.wait_settled("firehose_live", 20)
    world.wait_settled("label_live", 1)
    assert index.terminate() == 0
    assert world.sql("select phase, count(*) from sluice.repo group by 1") == [("sync", 20)]
    assert world.sql("select count(*), count(*) filter (where rkey = 'live') from sluice.record") == [(220, 20)]
    assert world.sql("select distinct rev, data from sluice.repo") == [(live_rev(1), "root-1")]
    assert world.sql("select src, val, neg from sluice.label") == [("did:plc:labeler", "spam", False)]
    committed = _group_positions(world)
    stored = {(t, p): n for t, p, n in world.sql("select topic, part, next from sluice.stream_offset")}
    assert {part: at for part, at in stored.items() if at} == {part: at for part, at in committed.items() if at}


def test_killed_at_any_moment_nothing_is_lost_and_nothing_twice(world: World) -> None:
    """G1, G2: kill -9 in the middle, three times; afterwards every row is there and every repo in sync."""
    messages = [message for number in range(REPOS) for message in snapshot(number, 50)]
    world.producer.send(messages)
    world.sql(SLOW)
    for _ in range(3):
        before = world.settled("firehose_backfill")
        index = world.index(index_batch_messages=500)  # at least fifteen batches, and as many seconds
        wait_until(lambda seen=before: world.settled("firehose_backfill") > seen, of=[index])
        index.kill()
        assert not index.running
    assert world.settled("firehose_backfill") < len(messages), "the kills came too late to interrupt anything"
    world.sql("drop trigger slow on sluice.stream_offset")
    index = world.index()
    world.wait_settled("firehose_backfill", len(messages))
    assert index.terminate() == 0
    assert world.sql("select phase, count(*) from sluice.repo group by 1") == [("sync", REPOS)]
    assert world.sql("select count(*) from sluice.record") == [(50 * REPOS,)]


def test_one_bad_message_costs_only_itself(world: World) -> None:
    """G7: what does not decode, and what the database refuses, become dead letters; the rest of the batch is written."""
    bad_json = Out("firehose_backfill", did(1), b'{"type":"create"')
    nul = create(2, "nul\0rkey")
    giant = create(3, secrets.token_urlsafe(6000))  # no index takes a key of this size: psycopg calls that operational
    good = [message for number in range(10, 20) for message in snapshot(number, 5)]
    world.producer.send([good[0], bad_json, *good[1:30], nul, giant, *good[30:]])
    index = world.index()
    world.wait_settled("firehose_backfill", len(good) + 3)
    letters = wait_until(lambda: _letters(world) if len(_letters(world)) == 3 else None)
    assert index.terminate() == 0
    assert sorted(letter.reason for letter in letters) == ["refused_by_database", "refused_by_database", "undecodable"]
    assert any("too large for an index" in letter.error for letter in letters)
    assert world.sql("select count(*) from sluice.record") == [(50,)]
    assert world.sql("select count(*) from sluice.repo where phase = 'sync'") == [(10,)]


def test_a_position_behind_the_logs_end_is_refused(world: World) -> None:
    """B9, design §6: a stored position that the log does not have is an error, never a silent reset."""
    world.producer.send(snapshot(1, 3))
    part = partition_of(did(1), PARTITIONS)
    world.sql(
        "insert into sluice.stream_offset values (%s, %s, %s, %s, 999)",
        *(cluster_id(world.settings), world.settings.group("index"), world.settings.topic("firehose_backfill"), part),
    )
    index = world.index()
    wait_until(lambda: not index.running)
    assert index.process.returncode != 0
    assert "the log ends at" in world.logs.read_text()
    assert world.sql("select count(*) from sluice.record") == [(0,)]


def test_a_log_that_begins_after_the_position_is_a_recorded_loss(world: World) -> None:
    """Design §6: retention that passed the index is written down, and the rest is read."""
    world.producer.send(snapshot(1, 3))
    topic, part = world.settings.topic("firehose_backfill"), partition_of(did(1), PARTITIONS)
    index = world.index()
    world.wait_settled("firehose_backfill", 4)
    assert index.terminate() == 0
    world.producer.send([commit(1, 1, "x"), *snapshot(1, 3)])
    admin = AdminClient({"bootstrap.servers": world.settings.kafka_bootstrap, "log_level": 0})
    for deleted in admin.delete_records([TopicPartition(topic, part, 6)]).values():
        deleted.result(60)
    index = world.index()
    world.wait_settled("firehose_backfill", 8)
    assert index.terminate() == 0
    assert world.sql("select upstream, to_seq, reason from sluice.stream_gap") == [
        (f"log:{topic}/{part}", 6, "retention passed the index")
    ]


def test_a_worker_that_lost_its_partition_writes_nothing(world: World) -> None:
    """G2: offsets move only from where they stood, in the transaction of the rows."""
    tables = IndexStore(world.settings, "cluster", None)
    part = ("firehose_backfill", 0)
    assert tables.starts({part: (0, 100)}) == {part: 0}
    with tables.transaction() as transaction:
        transaction.move({part: (0, 10)})
    zombie = IndexStore(world.settings, "cluster", None)

    def late() -> None:
        with zombie.transaction() as transaction:
            transaction.lock([did(1)])
            transaction.move({part: (0, 10)})

    with pytest.raises(PartitionLost):
        late()
    assert world.sql("select count(*) from sluice.repo") == [(0,)]


def _letters(world: World) -> list[wire.DeadLetter]:
    messages = read_topic(world.settings.kafka_bootstrap, world.settings.topic("dead_letter"))
    return [wire.decode_dead_letter(message.value()) for message in messages]


def _group_positions(world: World) -> dict[tuple[str, int], int]:
    group, found = world.settings.group("index"), {}
    for name in ("firehose_backfill", "firehose_live", "label_live"):
        topic = world.settings.topic(name)
        at = group_positions(world.settings.kafka_bootstrap, group, topic)
        found |= {(topic, part): offset for part, offset in at.items()}
    return found
