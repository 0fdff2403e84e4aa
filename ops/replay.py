"""`sluice replay TOPIC`: messages that were settled once, through the same guards again, beside the running index.

    firehose_backfill, firehose_live, label_live   the gate, in bounded batches, each one transaction; nothing is news here, so
                                                   nothing is held, heard or fetched because of it (`Rules.replayed`)
    repo_backfill, repo_resync                     tasks whose repo still waits for them are sent again: the claim is the guard
    dead_letter                                    the index of the topic

A replay never goes beyond the position of the group that settles the topic: what that has not seen would overtake it. Its
own positions stand in `sluice.stream_offset` under a group of its own while it runs.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import psycopg
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec

from appview.plugin import AppView
from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable, Part, cluster_id
from connectors.kafka.offsets import NO_OFFSET, Positions
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.connection import connect
from control.dead_letters import index_letters
from control.tasks.scheduler import TASK_TOPICS
from flows.index.apply import rules_of
from flows.index.decode import TOPICS, Batch, decode
from flows.index.sink import IndexWriter
from flows.index.store import IndexStore
from schemas import wire
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import DEAD_LETTER, MAX_MESSAGE_BYTES

SQL = queries("replay")
GROUPS = {**dict.fromkeys(TOPICS, "index"), **dict.fromkeys(TASK_TOPICS, "backfill"), DEAD_LETTER: "dead-letters"}
READ_SECONDS = 30.0

Told = Callable[[int], None]
"""Is given the number of messages so far, after every batch."""

Spans = dict[int, tuple[int, int]]
"""Partition → (first offset, end) to read."""


@dataclass(slots=True)
class Replayed:
    """Counts: messages read, and of these: without effect because they cannot be decoded or are refused; tasks sent."""

    messages: int = 0
    refused: int = 0
    sent: int = 0


class Refusals:
    """Takes what would become dead letters: they are there since the first time, so they are only counted."""

    def __init__(self) -> None:
        self.count = 0

    def send(self, messages: Sequence[Out]) -> None:
        """Count them."""
        self.count += len(messages)


def replay(settings: Settings, topic: str, starts: Mapping[int, int], ends: Mapping[int, int], told: Told) -> Replayed:
    """Replay a topic's partitions from `starts` (default: the log's start) to `ends` (default, and at most: the group's
    position). Raises OperatorError for offsets that the log does not have, LogUnavailable, psycopg.Error.
    """
    positions = Positions(settings)
    with connect(settings.database, "sluice replay") as db:
        spans = bounds(positions, db, topic, starts, ends)
        if topic in TOPICS:
            return _through_the_gate(settings, db, topic, spans, told)
        if topic in TASK_TOPICS:
            return _tasks(settings, db, topic, spans, told)
        return _letters(settings, db, topic, spans, told)


def bounds(
    positions: Positions,
    db: psycopg.Connection[tuple[object, ...]],
    topic: str,
    starts: Mapping[int, int],
    ends: Mapping[int, int],
) -> Spans:
    """What is to be read of each partition."""
    if topic not in GROUPS:
        raise OperatorError(f"there is no topic {topic!r}; choose one of {', '.join(GROUPS)}")
    parts = positions.parts([topic])
    group = GROUPS[topic]
    settled = positions.committed(group, parts) | positions.stored(db, group)
    firsts, lasts = positions.starts(parts), positions.ends(parts)
    for name, asked in (("--from-offset", starts), ("--to", ends)):
        for number in asked:
            if (topic, number) not in firsts:
                raise OperatorError(f"{name} {number}:…: {topic} has no partition {number}")
    spans: Spans = {}
    for part in parts:
        first, limit = firsts[part], min(settled.get(part, 0), lasts[part])
        begin = starts.get(part[1], first if not starts else limit)
        if begin < first:
            raise OperatorError(f"--from-offset {part[1]}:{begin}: the log of {topic} begins at {first}")
        end = min(ends.get(part[1], limit), limit)
        if begin < end:
            spans[part[1]] = (begin, end)
    return spans


def read(settings: Settings, topic: str, spans: Spans, batch: int) -> Iterator[list[Message]]:
    """Messages of these spans in batches, each partition in order. Raises LogUnavailable."""
    name = settings.topic(topic)
    consumer = Consumer(
        broker.options(settings, "replay")
        | {
            "group.id": settings.group("replay"),
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "fetch.message.max.bytes": 128 * 1024,  # of a partition, compressed: records shrink tenfold
            "queued.max.messages.kbytes": 32 * 1024,
            "log_level": 0,
        }
    )
    left = {part: end for part, (begin, end) in spans.items() if begin < end}
    consumer.assign([TopicPartition(name, part, spans[part][0]) for part in left])
    try:
        heard = time.monotonic()
        while left:
            found = consumer.consume(batch, 0.1)  # waits for a whole batch, or so long
            if found:
                before = set(left)
                good = _within(name, found, left)
                consumer.pause([TopicPartition(name, part) for part in before - set(left)])
                yield good
                heard = time.monotonic()
            elif time.monotonic() - heard > READ_SECONDS:
                raise LogUnavailable(f"{name}: no message within {READ_SECONDS:.0f} s; is the broker up?")
    except KafkaException as err:
        raise LogUnavailable(f"{name}: {err}") from err
    finally:
        broker.close(consumer)


def _within(name: str, found: list[Message], left: dict[int, int]) -> list[Message]:
    """Those before their partition's end; partitions that have come to it leave `left`."""
    good = []
    for message in found:
        part, offset, error = message.partition() or 0, message.offset() or 0, message.error()
        if error is not None and error.code() != error._PARTITION_EOF:
            raise LogUnavailable(f"{name}: {error.str()}")
        if part not in left:
            continue
        if error is None and offset < left[part]:
            good.append(message)
        if offset + (error is None) >= left[part]:  # the end of a partition may be a gap that compaction left
            del left[part]
    return good


def settled(settings: Settings, writer: IndexWriter, topic: str, spans: Spans) -> Iterator[int]:
    """Put these spans through a writer, whose tables' offsets move along; messages of each batch."""
    following = {(settings.topic(topic), part): begin for part, (begin, _) in spans.items()}
    for messages in read(settings, topic, spans, settings.index_batch_messages):
        moved: dict[Part, tuple[int, int]] = {}
        for message in messages:
            part = (message.topic() or "", message.partition() or 0)
            moved[part] = (moved[part][0] if part in moved else following[part], (message.offset() or 0) + 1)
        following |= {part: end for part, (_, end) in moved.items()}
        if messages:
            writer.write(decode(Batch(messages, moved), settings.kafka_topic_prefix))
        yield len(messages)


def _through_the_gate(
    settings: Settings, db: psycopg.Connection[tuple[object, ...]], topic: str, spans: Spans, told: Told
) -> Replayed:
    group, refusals, done = "replay", Refusals(), Replayed()
    cluster = cluster_id(settings)
    tables = IndexStore(settings, cluster, AppView(settings), group)
    db.execute(SQL["forget_offsets"], {"group": settings.group(group)})
    name = settings.topic(topic)
    values = {"topics": [name] * len(spans), "parts": list(spans), "nexts": [begin for begin, _ in spans.values()]}
    db.execute(SQL["set_offsets"], {"cluster": cluster, "group": settings.group(group), **values})
    try:
        writer = IndexWriter(settings, tables, rules_of(settings, replayed=True), refusals)
        for count in settled(settings, writer, topic, spans):
            done.messages += count
            told(done.messages)
    finally:
        tables.close()
        db.execute(SQL["forget_offsets"], {"group": settings.group(group)})
    done.refused = refusals.count
    return done


def _tasks(
    settings: Settings, db: psycopg.Connection[tuple[object, ...]], topic: str, spans: Spans, told: Told
) -> Replayed:
    producer, done = LogProducer(settings), Replayed()
    for messages in read(settings, topic, spans, settings.index_batch_messages):
        tasks: dict[tuple[str, int], wire.RepoTask] = {}
        for message in messages:
            try:
                task = wire.decode_task(message.value() or b"")
                tasks[task.did, task.attempt] = task
            except msgspec.DecodeError:
                done.refused += 1
        keys = list(tasks)
        values = {"dids": [did for did, _ in keys], "attempts": [attempt for _, attempt in keys]}
        waiting = [tasks[did, attempt] for did, attempt in db.execute(SQL["pending_tasks"], values)]  # type: ignore[index]  # text, integer
        producer.send([Out(topic, task.did, wire.encode(task)) for task in waiting])
        done.messages += len(messages)
        done.sent += len(waiting)
        told(done.messages)
    return done


def _letters(
    settings: Settings, db: psycopg.Connection[tuple[object, ...]], topic: str, spans: Spans, told: Told
) -> Replayed:
    done = Replayed()
    for messages in read(settings, topic, spans, settings.index_batch_messages):
        done.refused += index_letters(db, messages)
        done.messages += len(messages)
        told(done.messages)
    return done


def partition_offsets(option: str, values: Sequence[str]) -> dict[int, int]:
    """`P:N` texts → partition → offset. Raises OperatorError."""
    found: dict[int, int] = {}
    for value in values:
        if not _is_place(value):
            raise OperatorError(f"{option} {value}: write PARTITION:OFFSET")
        part, _, offset = value.partition(":")
        found[int(part)] = int(offset)
    return found


def asked(
    settings: Settings, topic: str, from_offset: Sequence[str], from_time: str, to: Sequence[str]
) -> tuple[dict[int, int], dict[int, int]]:
    """Starts and ends of a replay from the command line's texts. Raises OperatorError."""
    if topic not in GROUPS:
        raise OperatorError(f"there is no topic {topic!r}; choose one of {', '.join(GROUPS)}")
    if from_offset and from_time:
        raise OperatorError("--from-offset and --from-time exclude each other; leave out one")
    starts = _at_time(settings, topic, "--from-time", from_time) if from_time else {}
    if len(to) == 1 and not _is_place(to[0]):
        ends = _at_time(settings, topic, "--to", to[0], "PARTITION:OFFSET, or ")
    else:
        ends = partition_offsets("--to", to)
    return starts or partition_offsets("--from-offset", from_offset), ends


def as_text(done: Replayed) -> str:
    """For people."""
    more = f", {done.sent} tasks sent again" if done.sent else ""
    refused = f"{done.refused} of them cannot be decoded or were refused" if done.refused else "none refused"
    return f"{done.messages} messages replayed, {refused}{more}"


def _is_place(text: str) -> bool:
    part, colon, offset = text.partition(":")
    return bool(colon) and part.isdecimal() and offset.isdecimal()


def _at_time(settings: Settings, topic: str, option: str, text: str, other: str = "") -> dict[int, int]:
    """Offset of the first message of each partition that is not older; the log's end where there is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as err:
        raise OperatorError(f"{option} {text}: write {other}a time as 2026-01-31T12:00:00Z") from err
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    positions = Positions(settings)
    parts = positions.parts([topic])
    found, ends = positions.offsets(parts, OffsetSpec.for_timestamp(int(seconds * 1000))), positions.ends(parts)
    return {part[1]: ends[part] if at == NO_OFFSET else at for part, at in found.items()}
