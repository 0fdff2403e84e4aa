"""The index's ends: a group source that reads from where the tables stand, and the transaction that moves them on.

The source's positions come from `sluice.stream_offset`, not from the group: the group's offsets only follow, after the
commit, for lag tools. One `Batch` is one poll; the flow decodes it, puts it through the gate and commits it before the next.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any, Protocol

import msgspec
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message
from typing_extensions import override

from appview.reconcile_thread import Folding
from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import Part, watermarks
from connectors.kafka.producer import LogProducer, Out, dead_letter
from connectors.postgres.connection import REFUSALS
from connectors.runtime import metrics
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.patience import patiently
from connectors.runtime.process import Health
from flows.index.batch_timer import BatchSize
from flows.index.sifting import SIFT_SECONDS, Spans, part_of, sift, span_of, split
from flows.index.store import Tables, Unit
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings
from steps.gate.batch import Placed, Round, settle
from steps.gate.key_size import KeyTooLarge, check_size
from steps.gate.model import Reason, Repo, Rules

TOPICS = ("firehose_backfill", "firehose_live", "label_live")
STALE = {Reason.STALE_REV, Reason.SAME_REV_OF_SNAPSHOT, Reason.BELOW_MIN_REV}
BATCH_BYTES = 16 * 1024 * 1024  # of messages in one transaction, plus one chunk of a poll

log = logging.getLogger("index")


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of one poll, in the order of each partition, and the offsets they span: part → (first, next)."""

    messages: list[Message]
    spans: dict[Part, tuple[int, int]]


@dataclass(slots=True)
class Decoded:
    """The same batch as events: queues per repo, labels, and what could not be decoded."""

    batch: Batch
    queues: dict[str, list[Placed]] = field(default_factory=lambda: defaultdict(list))
    labels: list[wire.LabelEvent] = field(default_factory=list)
    letters: list[Out] = field(default_factory=list)
    too_large: int = 0  # of the letters: those whose key no index holds
    newest_time: str = ""


class IndexPartition(CheckpointedPartition[Batch, dict[Part, int]]):
    """Reads backfill, live and labels of the partitions that the group gives us."""

    def __init__(self, settings: Settings, health: Health, tables: Tables, unread: dict[Part, int]) -> None:
        super().__init__(health)
        self._unread = unread
        self._settings = settings
        self._tables = tables
        self._next: dict[Part, int] = {}
        self._size = BatchSize(settings)
        self._folding = Folding(settings) if settings.appview else None
        if self._folding is not None:
            self._folding.start()
        self._consumer = GroupConsumer(settings, "index", TOPICS, starts=self._starts, lost=self._lost)
        health.report("idle")

    def _starts(self, parts: list[Part]) -> dict[Part, int]:
        marks = watermarks(self._settings, TOPICS) if parts else {}
        known = {part: marks[part] for part in parts}
        starts = patiently(lambda: self._tables.starts(known), self.health) if parts else {}
        log.info("assigned", extra={"partitions": len(parts)})
        self._next |= starts
        return starts

    def _lost(self, parts: list[Part]) -> None:
        for part in parts:
            self._next.pop(part, None)

    @override
    def poll(self) -> list[Batch]:
        if self._folding is not None:
            self._folding.check()
        self._go_back()
        if self._draining:
            return []
        self._size.ended()  # the engine asks for more when the sink has committed
        messages = self._consumer.poll(self._size.limit, most_bytes=BATCH_BYTES)
        self._size.begun(len(messages))
        spans: dict[Part, tuple[int, int]] = {}
        for message in messages:
            part = (message.topic() or "", message.partition() or 0)
            begin, _ = spans.get(part, (self._next.get(part, message.offset()), 0))
            spans[part] = (begin or 0, (message.offset() or 0) + 1)
        self._next |= {part: end for part, (_, end) in spans.items()}
        self.health.report("working" if messages else "idle")
        return [Batch(messages, spans)] if messages else []

    def _go_back(self) -> None:
        """Read again what the writer gave back."""
        for part, at in self._unread.items():
            if part in self._next:
                self._next[part] = at
                if not self._draining and part in self._consumer.assigned:
                    self._consumer.seek(part, at)
        self._unread.clear()

    @override
    def position(self) -> dict[Part, int] | None:
        return dict(self._next) or None

    @override
    def commit(self, position: dict[Part, int]) -> None:
        self._size.ended()
        self._consumer.commit(position)

    @override
    def close(self) -> None:
        if self._folding is not None:
            self._folding.close()
        self._consumer.close()


def decode(batch: Batch, prefix: str = "") -> Decoded:
    """Messages → events by repo. What does not decode becomes a dead letter and is settled."""
    decoded = Decoded(batch)
    for message in batch.messages:
        topic, value = (message.topic() or "").removeprefix(prefix), message.value() or b""
        try:
            if topic == "label_live":
                label = wire.decode_label(value)
                check_size(topic, label)
                decoded.labels.append(label)
                continue
            event: Any = wire.decode_live(value) if topic == "firehose_live" else wire.decode_backfill(value)
            check_size(topic, event)
            kind, received = message.timestamp()
            came = received if kind != TIMESTAMP_NOT_AVAILABLE else None
            decoded.queues[event.did].append(Placed(message.offset() or 0, event, len(value), came))
            if topic == "firehose_live":
                decoded.newest_time = max(decoded.newest_time, event.time)
        except (msgspec.MsgspecError, KeyTooLarge) as err:
            large = isinstance(err, KeyTooLarge)
            decoded.too_large += large
            reason = DeadReason.REFUSED_BY_DATABASE if large else DeadReason.UNDECODABLE
            at = (message.partition() or 0, message.offset() or 0)
            decoded.letters.append(dead_letter(topic, reason, str(err), value, at=at))
    return decoded


class Letters(Protocol):
    """Where dead letters go."""

    def send(self, messages: Sequence[Out]) -> object:
        """Write all of them, or raise."""


def rules_of(settings: Settings, *, replayed: bool = False) -> Rules:
    """The gate's limits as the settings have them: the only place that makes them."""
    return Rules(
        max_held=settings.held_events_per_repo,
        max_held_bytes=settings.held_bytes_per_repo,
        max_attempts=settings.max_attempts,
        retry_first_seconds=settings.retry_first_seconds,
        retry_max_seconds=settings.retry_max_seconds,
        replayed=replayed,
    )


class Gate:
    """The gate's transaction: locks, settles, writes. `hold` keeps it open for the sink, which commits it."""

    def __init__(self, tables: Tables, rules: Rules) -> None:
        self._tables = tables
        self._rules = rules

    def settle(self, unit: Unit, queues: Mapping[str, Sequence[Placed]]) -> None:
        """Put the events of all repos through the gate, round by round, and save the repos."""
        queues = unit.admitted(queues)
        repos = unit.lock(queues)
        settling = settle(repos, queues, replace(self._rules, filter=unit.filter))
        try:
            work = next(settling)
            while True:
                unit.write(work)
                unit.committed.append(partial(_tell, work))
                work = settling.send(unit.facts(work.awaiting, self._rules.max_held_bytes))
        except StopIteration as end:
            after: dict[str, Repo] = end.value
            unit.save(repos, after)


def _tell(work: Round) -> None:
    for reason, count in work.dropped.items():
        metrics.DROPPED.labels("index", reason).inc(count)
        metrics.STALE.inc(count if reason in STALE else 0)
    for did, (released, of) in work.released.items():
        metrics.RELEASED.inc(released)
        log.info(f"released {released}/{of}", extra={"did": did})


class IndexSink(DynamicSink[Decoded]):
    """Writes decoded batches: one transaction each, retried when the database undid it."""

    def __init__(
        self,
        settings: Settings,
        tables: Tables,
        rules: Rules,
        unread: dict[Part, int],
        health: Health | None = None,
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._rules = rules
        self._unread = unread
        self._health = health

    @override
    def build(self, step_id: str, worker_index: int, worker_count: int) -> "IndexWriter":
        gate, producer = Gate(self._tables, self._rules), LogProducer(self._settings)
        return IndexWriter(self._settings, self._tables, gate, producer, unread=self._unread, health=self._health)


class IndexWriter(StatelessSinkPartition[Decoded]):
    """One transaction a batch; a poisonous message is found by halving and becomes a dead letter.

    `unread`: where a batch that takes too long to halve notes the offsets that it gives back; None: it has all the time.
    """

    def __init__(
        self,
        settings: Settings,
        tables: Tables,
        gate: Gate,
        producer: Letters,
        *,
        unread: dict[Part, int] | None = None,
        health: Health | None = None,
    ) -> None:
        self._health = health
        self._unread = unread
        self._prefix = settings.topic_prefix
        self._tables = tables
        self._gate = gate
        self._producer = producer

    @override
    def write_batch(self, items: list[Decoded]) -> None:
        for decoded in items:
            self.write(decoded)

    def write(self, decoded: Decoded) -> None:
        """Settle a batch, whatever is in it. Raises PartitionLost, and psycopg.Error when retries did not help."""
        if decoded.letters:
            self._producer.send(decoded.letters)
            counts = {DeadReason.REFUSED_BY_DATABASE: decoded.too_large}
            counts[DeadReason.UNDECODABLE] = len(decoded.letters) - decoded.too_large
            for reason, count in counts.items():
                metrics.DEAD_LETTERS.labels("index", reason.value).inc(count)
        try:
            self._with_retries(lambda: self._transaction(decoded))
        except REFUSALS:
            self._sift(decoded)
        self._report(decoded)

    def _transaction(self, decoded: Decoded) -> None:
        with metrics.INDEX_SECONDS.time(), self._tables.transaction() as unit:
            if decoded.queues:
                self._gate.settle(unit, decoded.queues)
            unit.labels(decoded.labels)
            unit.move(decoded.batch.spans)

    def _with_retries(self, work: Callable[[], None]) -> None:
        patiently(work, self._health, what="transaction undone")

    def _sift(self, decoded: Decoded) -> None:
        """The same batch, live events first; what is refused becomes a dead letter, and what takes too long is given back."""
        live = f"{self._prefix}firehose_live"
        batch = decoded.batch
        for messages, spans in split(batch.messages, batch.spans, lambda topic: topic == live):
            try:
                if len(messages) == len(batch.messages):
                    self._sift_part(messages, spans)
                else:
                    part = decode(Batch(messages, spans), self._prefix)
                    self._with_retries(partial(self._transaction, part))
            except REFUSALS:
                self._sift_part(messages, spans)

    def _sift_part(self, messages: list[Message], spans: Spans) -> None:
        deadline = inf if self._unread is None else time.monotonic() + SIFT_SECONDS
        done: int = 0
        letters: list[Out] = []

        def work() -> None:
            nonlocal done, letters
            with self._tables.transaction() as unit:
                done, letters = sift(messages, self._settle_some, self._prefix, deadline)
                if letters:
                    self._producer.send(letters)  # before the commit, which moves the offsets behind them
                unit.move(spans if done == len(messages) else span_of(messages[:done], spans))

        self._with_retries(work)
        metrics.RECORDS_FAILED.inc(len(letters))
        metrics.DEAD_LETTERS.labels("index", DeadReason.REFUSED_BY_DATABASE.value).inc(len(letters))
        for message in reversed(messages[done:]):
            self._unread[part_of(message)] = message.offset() or 0  # type: ignore[index]  # without it all is done

    def _settle_some(self, messages: list[Message]) -> None:
        """Messages of a batch within its transaction, undone where they raise. What only the AppView refuses of a single one
        stays in the mirror."""
        part = decode(Batch(messages, {}), self._prefix)
        with self._tables.transaction(singly=len(messages) == 1, within=True) as unit:
            if part.queues:
                self._gate.settle(unit, part.queues)
            unit.labels(part.labels)

    def _report(self, decoded: Decoded) -> None:
        metrics.INDEX_EVENTS.labels("label").inc(len(decoded.labels))
        metrics.INDEX_EVENTS.labels("repo").inc(len(decoded.batch.messages) - len(decoded.labels))
        if decoded.newest_time:
            metrics.INDEX_AGE.set(_age(decoded.newest_time))


def _age(text: str) -> float:
    try:
        return time.time() - datetime.fromisoformat(text).astimezone(UTC).timestamp()
    except ValueError:
        return 0.0
