"""The index's output: one transaction a batch. A batch that the database refuses is halved down to the messages at fault."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Protocol

from bytewax.outputs import DynamicSink, StatelessSinkPartition
from confluent_kafka import Message
from typing_extensions import override

from connectors.kafka.log import Part
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.connection import REFUSALS
from connectors.postgres.main_database import MainUnavailable
from connectors.postgres.shards import CONFLICT_SECONDS, Shards
from connectors.runtime import metrics
from connectors.runtime.health import Health
from connectors.runtime.retry_database import OUTAGE_SECONDS, retry_database
from flows.index.apply import apply_events
from flows.index.decode import Batch, Decoded, decode
from flows.index.halving import HALVING_SECONDS, by_halves, part_of, span_of, split
from flows.index.store import IndexStore
from flows.index.stream_offsets import Spans
from schemas.reasons import DeadReason
from schemas.settings import Settings
from steps.gate.model import Rules


class DeadLetterLog(Protocol):
    """Where dead letters are written."""

    def send(self, messages: Sequence[Out]) -> object:
        """Write all messages, or raise."""


class IndexSink(DynamicSink[Decoded]):
    """One transaction a batch, retried when the database rolled it back. `down`: gets the shards that do not answer."""

    def __init__(
        self,
        settings: Settings,
        stores: Shards[IndexStore],
        rules: Rules,
        unread: dict[Part, int],
        *,
        down: set[int],
        health: Health | None = None,
    ) -> None:
        self._settings = settings
        self._stores = stores
        self._rules = rules
        self._unread = unread
        self._down = down
        self._health = health

    @override
    def build(self, step_id: str, worker_index: int, worker_count: int) -> "ShardedWriter":
        settings, rules = self._settings, self._rules
        patience = CONFLICT_SECONDS if settings.shards else OUTAGE_SECONDS
        writers = [
            IndexWriter(
                settings,
                store,
                rules,
                LogProducer(settings),
                unread=self._unread,
                health=self._health,
                patience=patience,
            )
            for store in self._stores.all()
        ]
        return ShardedWriter(self._stores, writers, self._down, self._health)


class ShardedWriter(StatelessSinkPartition[Decoded]):
    """Writes each batch to the shard of its partitions, all shards at the same time.

    A batch whose shard does not answer in time is dropped, to be read again from the position in its database.
    """

    def __init__(
        self,
        stores: Shards[IndexStore],
        writers: "Sequence[IndexWriter]",
        down: set[int],
        health: Health | None = None,
    ) -> None:
        self._stores = stores
        self._writers = writers
        self._down = down
        self._health = health

    @override
    def write_batch(self, items: list[Decoded]) -> None:
        left: dict[int, Decoded] = {}
        for decoded in items:
            _, partition = next(iter(decoded.batch.spans))
            left[self._stores.of_partition(partition)] = decoded
        retry_database(lambda: self._write(left), self._health, only=MainUnavailable)

    def _write(self, left: dict[int, Decoded]) -> None:
        """Write what is left. Raises MainUnavailable."""
        works = {number: partial(self._write_one, left, number) for number in left}
        self._down |= works.keys() - self._stores.gather(works).keys()

    def _write_one(self, left: dict[int, Decoded], number: int, _store: IndexStore) -> None:
        self._writers[number].write(left[number])
        del left[number]


class IndexWriter:
    """One transaction a batch; halving finds a message that the database refuses, and makes it a dead letter.

    `unread`: gets the offsets to read again if halving runs out of time; None: it has no time limit. `patience`: seconds of
    retries while the database is unavailable.
    """

    def __init__(
        self,
        settings: Settings,
        store: IndexStore,
        rules: Rules,
        producer: DeadLetterLog,
        *,
        unread: dict[Part, int] | None = None,
        health: Health | None = None,
        patience: float = OUTAGE_SECONDS,
    ) -> None:
        self._health = health
        self._patience = patience
        self._unread = unread
        self._prefix = settings.kafka_topic_prefix
        self._store = store
        self._rules = rules
        self._producer = producer

    def write(self, decoded: Decoded) -> None:
        """Write a batch. Raises PartitionLost, and psycopg.Error if retries did not help."""
        try:
            self._with_retries(lambda: self._transaction(decoded))
        except REFUSALS:
            self._send_letters(decoded)
            self._halve(decoded)
        self._report(decoded)

    def _send_letters(self, decoded: Decoded) -> None:
        """Once, however often the transaction is repeated."""
        if decoded.letters:
            self._producer.send(decoded.letters)
            counts = {DeadReason.REFUSED_BY_DATABASE: decoded.too_large}
            counts[DeadReason.UNDECODABLE] = len(decoded.letters) - decoded.too_large
            for reason, count in counts.items():
                metrics.DEAD_LETTERS.labels("index", reason.value).inc(count)
            decoded.letters.clear()

    def _transaction(self, decoded: Decoded) -> None:
        with metrics.INDEX_SECONDS.time(), self._store.transaction() as transaction:
            if decoded.queues:
                apply_events(transaction, decoded.queues, self._rules)
            transaction.labels(decoded.labels)
            self._send_letters(decoded)  # the offsets move past them; not before: the shard may not answer
            transaction.move(decoded.batch.spans)

    def _with_retries(self, work: Callable[[], None]) -> None:
        retry_database(work, self._health, seconds=self._patience, what="transaction rolled back")

    def _halve(self, decoded: Decoded) -> None:
        """Write a refused batch in parts, live events first."""
        live = f"{self._prefix}firehose_live"
        batch = decoded.batch
        for messages, spans in split(batch.messages, batch.spans, lambda topic: topic == live):
            try:
                if len(messages) == len(batch.messages):
                    self._halve_part(messages, spans)
                else:
                    part = decode(Batch(messages, spans), self._prefix)
                    part.letters.clear()  # sent
                    self._with_retries(partial(self._transaction, part))
            except REFUSALS:
                self._halve_part(messages, spans)

    def _halve_part(self, messages: list[Message], spans: Spans) -> None:
        deadline = inf if self._unread is None else time.monotonic() + HALVING_SECONDS
        done: int = 0
        letters: list[Out] = []

        def work() -> None:
            nonlocal done, letters
            with self._store.transaction() as transaction:
                done, letters = by_halves(messages, self._write_some, self._prefix, deadline)
                if letters:
                    self._producer.send(letters)  # before the commit: it moves the offsets past them
                transaction.move(spans if done == len(messages) else span_of(messages[:done], spans))

        self._with_retries(work)
        metrics.RECORDS_FAILED.inc(len(letters))
        metrics.DEAD_LETTERS.labels("index", DeadReason.REFUSED_BY_DATABASE.value).inc(len(letters))
        for message in reversed(messages[done:]):
            self._unread[part_of(message)] = message.offset() or 0  # type: ignore[index]  # all is done if it is None

    def _write_some(self, messages: list[Message]) -> None:
        """Write messages in a savepoint. A single message that only the projection refuses stays in the mirror."""
        part = decode(Batch(messages, {}), self._prefix)
        with self._store.transaction(singly=len(messages) == 1, within=True) as transaction:
            if part.queues:
                apply_events(transaction, part.queues, self._rules)
            transaction.labels(part.labels)

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
