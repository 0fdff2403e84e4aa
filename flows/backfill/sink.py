"""Chunks and dead letters → `firehose_backfill`; the offset of an outcome → the claim's row, as soon as it is durable."""

from collections.abc import Collection, Sequence
from typing import Protocol

from bytewax.outputs import DynamicSink, StatelessSinkPartition
from typing_extensions import override

from connectors.kafka.producer import Delivered, LogProducer, Out
from connectors.postgres.repo_queue import RepoQueue
from connectors.postgres.sharded_queue import repo_queue
from connectors.runtime import metrics
from connectors.runtime.health import Health
from connectors.runtime.retry_database import retry_database
from flows.backfill.task import MessageChunk, SnapshotTask
from schemas.settings import Settings
from schemas.topics import FIREHOSE_BACKFILL

TOPIC = FIREHOSE_BACKFILL


class Log(Protocol):
    """The part of LogProducer that the sink needs."""

    def send(self, messages: Sequence[Out], places_of: Collection[int] = ()) -> dict[int, Delivered]:
        """See LogProducer."""


class AttemptSink(DynamicSink[MessageChunk | Out]):
    """Writes chunks, and closes the attempts whose outcome is in the log."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health

    @override
    def build(self, step_id: str, worker_index: int, worker_count: int) -> "AttemptSinkPartition":
        return AttemptSinkPartition(LogProducer(self._settings), repo_queue(self._settings), self._health)


class AttemptSinkPartition(StatelessSinkPartition[MessageChunk | Out]):
    """The sink over any log. Closes the queue's connection at its end."""

    def __init__(self, log: Log, queue: RepoQueue, health: Health) -> None:
        self._log = log
        self._queue = queue
        self._health = health

    @override
    def write_batch(self, items: list[MessageChunk | Out]) -> None:
        messages: list[Out] = []
        closing: list[tuple[SnapshotTask, int]] = []  # (task, index of its outcome in `messages`)
        for item in items:
            if isinstance(item, Out):
                messages.append(item)
            elif item.task.fenced:
                metrics.DROPPED.labels("backfill", "claim_lost").inc(len(item.values))
                item.task.finish(None)
            else:
                did = item.task.claim.did
                messages += [Out(TOPIC, did, value) for value in item.values]
                if item.closes:
                    closing.append((item.task, len(messages) - 1))
        written = self._log.send(messages, {at for _, at in closing})
        self._health.progressed()
        if not closing:
            return
        outcomes = [(t.claim.did, t.claim.attempt, written[at].partition, written[at].offset) for t, at in closing]
        retry_database(lambda: self._queue.produced(outcomes), self._health)
        for task, _ in closing:
            metrics.REPOS_PROCESSED.labels(task.unavailable.status if task.unavailable else "synced").inc()
            task.finish(None)

    @override
    def close(self) -> None:
        self._queue.close()
