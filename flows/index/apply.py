"""The gate inside the index transaction: lock the repos, decide their events, write, save."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from connectors.runtime import metrics
from flows.index.transaction import IndexTransaction
from schemas.settings import Settings
from steps.gate.batch import OffsetEvent, WriteBatch, settle
from steps.gate.model import Reason, Repo, Rules

STALE = {Reason.STALE_REV, Reason.SAME_REV_OF_SNAPSHOT, Reason.BELOW_MIN_REV}

log = logging.getLogger("index")


def rules_of(settings: Settings, *, replayed: bool = False) -> Rules:
    """The gate's limits, from the settings. All writers use this function."""
    return Rules(
        max_buffered=settings.tuning.buffered_events_per_repo,
        max_buffered_bytes=settings.tuning.buffered_bytes_per_repo,
        max_attempts=settings.backfill_max_attempts,
        retry_first_seconds=settings.tuning.retry_first_seconds,
        retry_max_seconds=settings.tuning.retry_max_seconds,
        replayed=replayed,
    )


def apply_events(transaction: IndexTransaction, queues: Mapping[str, Sequence[OffsetEvent]], rules: Rules) -> None:
    """Apply the events of each repo in log order, and save the repos. Raises psycopg.Error.

    `queues`: events by DID. All repos advance together, one write batch after the other, until each queue is empty.
    """
    queues = transaction.admitted(queues)
    repos = transaction.lock(queues)
    settling = settle(repos, queues, replace(rules, filter=transaction.filter))
    try:
        writes = next(settling)
        while True:
            transaction.write(writes)
            transaction.committed.append(partial(_report, writes))
            writes = settling.send(transaction.facts(writes.awaiting, rules.max_buffered_bytes))
    except StopIteration as end:
        after: dict[str, Repo] = end.value
        transaction.save(repos, after)


def _report(writes: WriteBatch) -> None:
    for reason, count in writes.dropped.items():
        metrics.DROPPED.labels("index", reason).inc(count)
        metrics.STALE_EVENTS.inc(count if reason in STALE else 0)
    for did, (released, of) in writes.released.items():
        metrics.RELEASED.inc(released)
        log.info(f"released {released}/{of}", extra={"did": did})
