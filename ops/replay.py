"""`sluice replay TOPIC`: process messages of the log again, beside the running index.

    firehose_backfill, firehose_live, label_live   through the gate, in bounded batches, each one transaction; events are not new
                                                   here, so none is buffered, counted as seen, or causes a fetch (`Rules.replayed`)
    repo_backfill, repo_resync                     tasks of repos that are still queued are sent again; the claim prevents double work
    dead_letter                                    into the table of dead letters

A replay never goes beyond the offset of the group that processes the topic: it would overtake that group. While it runs, its own
offsets are in `sluice.stream_offset` under the group `replay`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import psycopg

from appview.plugin import AppView
from connectors.kafka.log import Part, cluster_id
from connectors.kafka.log_spans import Spans, read
from connectors.kafka.offsets import Offsets
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.connection import connect
from connectors.postgres.sharded_queue import repo_queue
from connectors.postgres.shards import shard_settings
from control.dead_letter_index import index_dead_letters
from control.tasks.scheduler import TASK_TOPICS
from flows.index.apply import rules_of
from flows.index.decode import TOPICS, Batch, decode
from flows.index.sink import IndexWriter
from flows.index.store import index_stores
from schemas import wire
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import DEAD_LETTER

SQL = queries("replay")
GROUPS = {**dict.fromkeys(TOPICS, "index"), **dict.fromkeys(TASK_TOPICS, "backfill"), DEAD_LETTER: "dead-letters"}

Progress = Callable[[int], None]
"""Receives the number of messages so far, after every batch."""


@dataclass(slots=True)
class Replayed:
    """Counts. `refused`: messages that cannot be decoded or that the database refuses; `sent`: tasks sent again."""

    messages: int = 0
    refused: int = 0
    sent: int = 0


class RefusedCounter:
    """Replaces the producer of dead letters: they exist from the first processing, so a replay only counts them."""

    def __init__(self) -> None:
        self.count = 0

    def send(self, messages: Sequence[Out]) -> None:
        self.count += len(messages)


def replay(
    settings: Settings, topic: str, starts: Mapping[int, int], ends: Mapping[int, int], progress: Progress
) -> Replayed:
    """Replay a topic's partitions from `starts` (default: the log's start) to `ends` (default, and at most: the group's offset).

    Raises OperatorError for offsets that the log does not have, LogUnavailable, psycopg.Error.
    """
    with connect(settings.database, "sluice replay") as db:
        spans = bounds(Offsets(settings), db, topic, starts, ends)
        if topic in TOPICS:
            return _through_the_gate(settings, topic, spans, progress)
        if topic in TASK_TOPICS:
            return _tasks(settings, topic, spans, progress)
        return _dead_letters(settings, db, topic, spans, progress)


def bounds(
    offsets: Offsets,
    db: psycopg.Connection[tuple[object, ...]],
    topic: str,
    starts: Mapping[int, int],
    ends: Mapping[int, int],
) -> Spans:
    """The span to read of each partition."""
    if topic not in GROUPS:
        raise OperatorError(f"there is no topic {topic!r}; choose one of {', '.join(GROUPS)}")
    parts = offsets.parts([topic])
    group = GROUPS[topic]
    settled = offsets.settled(db, group, parts)
    firsts, lasts = offsets.starts(parts), offsets.ends(parts)
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


def replay_spans(settings: Settings, writer: IndexWriter, topic: str, spans: Spans) -> Iterator[int]:
    """Put these spans through a writer, which also stores the offsets; yields the number of messages of each batch."""
    following = {(settings.topic(topic), part): begin for part, (begin, _) in spans.items()}
    for messages in read(settings, topic, spans, settings.tuning.index_batch_messages):
        moved: dict[Part, tuple[int, int]] = {}
        for message in messages:
            part = (message.topic() or "", message.partition() or 0)
            moved[part] = (moved[part][0] if part in moved else following[part], (message.offset() or 0) + 1)
        following |= {part: end for part, (_, end) in moved.items()}
        if messages:
            writer.write(decode(Batch(messages, moved), settings.kafka_topic_prefix))
        yield len(messages)


def _through_the_gate(settings: Settings, topic: str, spans: Spans, progress: Progress) -> Replayed:
    group, refusals, done = "replay", RefusedCounter(), Replayed()
    cluster = cluster_id(settings)
    stores = index_stores(settings, cluster, AppView(settings), group)
    for number, (shard, store) in enumerate(zip(shard_settings(settings), stores.all(), strict=True)):
        own = {part: span for part, span in spans.items() if stores.of_partition(part) == number}
        with connect(shard.database, "sluice replay") as db:
            db.execute(SQL["forget_offsets"], {"group": settings.group(group)})
            values = {
                "topics": [settings.topic(topic)] * len(own),
                "parts": list(own),
                "nexts": [one[0] for one in own.values()],
            }
            db.execute(SQL["set_offsets"], {"cluster": cluster, "group": settings.group(group), **values})
            try:
                writer = IndexWriter(settings, store, rules_of(settings, replayed=True), refusals)
                for count in replay_spans(settings, writer, topic, own) if own else ():
                    done.messages += count
                    progress(done.messages)
            finally:
                store.close()
                db.execute(SQL["forget_offsets"], {"group": settings.group(group)})
    done.refused = refusals.count
    return done


def _tasks(settings: Settings, topic: str, spans: Spans, progress: Progress) -> Replayed:
    producer, queue, done = LogProducer(settings), repo_queue(settings), Replayed()
    for messages in read(settings, topic, spans, settings.tuning.index_batch_messages):
        tasks: dict[tuple[str, int], wire.RepoTask] = {}
        for message in messages:
            try:
                task = wire.decode_task(message.value() or b"")
                tasks[task.did, task.attempt] = task
            except msgspec.DecodeError:
                done.refused += 1
        keys = list(tasks)
        values = {"dids": [did for did, _ in keys], "attempts": [attempt for _, attempt in keys]}
        waiting = [tasks[did, attempt] for did, attempt in queue.read(SQL["pending_tasks"], values)]
        producer.send([Out(topic, task.did, wire.encode(task)) for task in waiting])
        done.messages += len(messages)
        done.sent += len(waiting)
        progress(done.messages)
    queue.close()
    return done


def _dead_letters(
    settings: Settings, db: psycopg.Connection[tuple[object, ...]], topic: str, spans: Spans, progress: Progress
) -> Replayed:
    done = Replayed()
    for messages in read(settings, topic, spans, settings.tuning.index_batch_messages):
        done.refused += index_dead_letters(db, messages)
        done.messages += len(messages)
        progress(done.messages)
    return done


def as_text(done: Replayed) -> str:
    more = f", {done.sent} tasks sent again" if done.sent else ""
    refused = f"{done.refused} of them cannot be decoded or were refused" if done.refused else "none refused"
    return f"{done.messages} messages replayed, {refused}{more}"
