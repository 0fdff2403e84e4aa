"""PDS → firehose_backfill: claimed repos are fetched, verified, and written record by record, with an outcome at the end.

    claims ──┬──▶ verify ──▶ records ──┬──▶ firehose_backfill
             └──▶ dead_letters ────────┘

The items between `claims` and `records` are works, not records: every turn takes a bounded piece of one repo further, so
that neither a large repo nor a batch of small ones is ever in memory as messages.
"""

import sys
from collections.abc import Iterable

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from typing_extensions import override

from connectors.kafka.back_pressure import HighWater
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.repo_queue import RepoQueue
from connectors.runtime import metrics
from connectors.runtime.checkpointed import CheckpointedSource
from connectors.runtime.patience import patiently
from connectors.runtime.process import Health, collect_rarely
from flows.backfill.source import ClaimsPartition
from flows.backfill.task import Chunk, Work
from schemas.settings import Settings

TOPIC = "firehose_backfill"
BATCH_BYTES = 8 * 1024 * 1024  # of messages in one batch, and one message more
LEAST_SHARE_BYTES = 256 * 1024
SWITCH_SECONDS = 0.0005  # after every socket call the loop's thread waits this long for a flow that computes


def build(source: FixedPartitionedSource[Work | Out, None], sink: DynamicSink[Chunk | Out]) -> Dataflow:
    """The flow over any source of works and any sink of messages."""
    flow = Dataflow("backfill")
    claims = op.input("claims", flow, source)
    verified = op.flat_map_batch("verify", claims, verify)
    messages = op.flat_map_batch("records", verified, records)
    letters = op.flat_map_batch("dead_letters", claims, dead_letters)
    everything = op.merge("messages", messages, letters)
    op.output(TOPIC, everything, sink)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The flow over the real log, database and network."""

    collect_rarely()
    sys.setswitchinterval(SWITCH_SECONDS)

    def claims() -> ClaimsPartition:
        pressure = HighWater(settings, TOPIC, "index")
        pressure.start()
        return ClaimsPartition(settings, health, lambda: pressure.paused)

    return build(CheckpointedSource(claims), AttemptSink(settings, health))


def verify(items: list[Work | Out]) -> Iterable[Work]:
    """Works whose snapshot is proven; the others go on, or end, by themselves."""
    return [item for item in items if isinstance(item, Work) and item.verified()]


def dead_letters(items: list[Work | Out]) -> Iterable[Out]:
    """What the source could not read."""
    return [item for item in items if isinstance(item, Out)]


def records(works: list[Work]) -> Iterable[Chunk]:
    """The next messages of each, while the batch has room; the others come first in the next one."""
    left, share = BATCH_BYTES, max(LEAST_SHARE_BYTES, BATCH_BYTES // max(1, len(works)))
    for work in works:
        if left <= 0:
            return
        chunk = work.messages(min(left, share))
        left -= chunk.size
        yield chunk


class AttemptSink(DynamicSink[Chunk | Out]):
    """Writes chunks to `firehose_backfill`; where an attempt's outcome stands is stored as soon as the log has it."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health

    @override
    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_AttemptSinkPartition":
        return _AttemptSinkPartition(self._settings, self._health)


class _AttemptSinkPartition(StatelessSinkPartition[Chunk | Out]):
    def __init__(self, settings: Settings, health: Health) -> None:
        self._producer = LogProducer(settings)
        self._store = RepoQueue(settings)
        self._health = health

    @override
    def write_batch(self, items: list[Chunk | Out]) -> None:
        messages: list[Out] = []
        closing: list[tuple[Work, int]] = []
        for item in items:
            if isinstance(item, Out):
                messages.append(item)
            elif item.work.fenced:
                metrics.DROPPED.labels("backfill", "claim_lost").inc(len(item.values))
                item.work.finish(None)
            else:
                did = item.work.claim.did
                messages += [Out(TOPIC, did, value) for value in item.values]
                if item.closes:
                    closing.append((item.work, len(messages) - 1))
        places = self._producer.send(messages, {at for _, at in closing})
        self._health.progressed()
        if not closing:
            return
        outcomes = [(w.claim.did, w.claim.attempt, places[at].partition, places[at].offset) for w, at in closing]
        patiently(lambda: self._store.produced(outcomes), self._health)
        for work, _ in closing:
            metrics.REPOS_PROCESSED.labels(work.gone.status if work.gone else "synced").inc()
            work.finish(None)

    @override
    def close(self) -> None:
        self._store.close()
