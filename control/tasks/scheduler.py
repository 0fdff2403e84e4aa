"""The scheduler and the reaper: rows that are due become messages, and work whose owner is gone becomes due.

Rows are the truth and messages follow them, so every step may be repeated or cut short at any point: a task that is sent
twice is claimed once (its attempt is the fence), and one that was never sent is found by `requeue`. Whoever holds the
`Leader` lock does this; two leaders for a moment only waste work.
"""

import logging
import time
from collections.abc import Sequence

import psycopg
from confluent_kafka.admin import OffsetSpec
from psycopg.rows import TupleRow

from connectors.kafka.log import Part
from connectors.kafka.offsets import NO_OFFSET, Positions
from connectors.kafka.producer import LogProducer, Out, partition_of
from connectors.postgres.connection import tuples
from connectors.postgres.repo_queue import RepoQueue
from control.tasks.job_steps import JobSteps
from control.tasks.runner import Step
from control.tasks.settled import Settled
from control.tasks.storms import LOST_EVENT, Storms
from schemas import wire
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import REPO_BACKFILL, REPO_RESYNC

LEADER_KEY = 0x51_01_CF
TASK_TOPICS = (REPO_BACKFILL, REPO_RESYNC)
REAP_DELAY_SECONDS = 5.0
LEADER_SECONDS = 20.0

logger = logging.getLogger("control")


def task_topic(attempt: int) -> str:
    """First fetches queue with the whole network; what had an attempt before does not wait behind them."""
    return REPO_RESYNC if attempt else REPO_BACKFILL


class Leader:
    """One control process among many leads: it holds a session's advisory lock. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._connection = tuples(settings, "sluice leader", opened=self._opened, statement_seconds=LEADER_SECONDS)
        self._leads = False

    def _opened(self, _db: psycopg.Connection[TupleRow]) -> None:
        self._leads = False  # the lock went with the session that held it

    def leads(self) -> bool:
        """Hold or try to get the lock. Raises psycopg.OperationalError when the database does not answer."""
        db = self._connection()
        if self._leads:
            db.execute("select 1")  # the lock is as alive as this session
        else:
            self._leads = db.execute(queries("control")["lead"], (LEADER_KEY,)).fetchone() == (True,)
        return self._leads

    def close(self) -> None:
        """Give the lock up."""
        self._connection.close()


class Scheduler:
    """Steps of control's work; each method is safe to repeat. Constructors never connect."""

    def __init__(self, settings: Settings, store: RepoQueue, producer: LogProducer, positions: Positions) -> None:
        self._settings = settings
        self._store = store
        self._producer = producer
        self._positions = positions
        self._jobs = JobSteps(settings, store, producer)
        self._settled = Settled(settings, positions)
        self._storms = Storms(settings)
        self._next_requeue = 0.0

    def step(self) -> Step:
        """All of it once, `requeue` when it is due. Raises psycopg.Error and LogUnavailable."""
        done = self.recover()
        if time.monotonic() >= self._next_requeue:
            done += self.requeued()
            self._next_requeue = time.monotonic() + self._settings.tuning.requeue_after_seconds / 3
        return done + self.queued()

    def recover(self) -> Step:
        """Take back what has lost its owner, and find events that were lost."""
        reaped = self._store.reap(self._positions.cluster, REAP_DELAY_SECONDS)
        lost = self.lost_events()
        return Step(reaped=len(reaped), lost_events=len(lost))

    def queued(self) -> Step:
        """Queue what is due, of the mirror and of jobs."""
        return Step(queued=self.queue() + self._jobs.step())

    def requeued(self) -> Step:
        """`requeue`, as a step."""
        return Step(requeued=self.requeue())

    def close(self) -> None:
        """Close the connections of its own."""
        self._jobs.close()
        self._settled.close()
        self._storms.close()

    def lost_events(self) -> list[str]:
        """Repos whose listed rev the streams never brought, made pending; none while the streams are behind or too many."""
        grace = self._settings.tuning.listed_rev_grace_seconds
        if not self._store.lost_candidates(grace, 1):
            if LOST_EVENT in self._storms.held():
                self._storms.held(0, now=True)  # the cause has gone
            return []
        settled = self._settled.until()
        candidates = self._store.lost_candidates(grace, 2 * self._storms.most(), settled)
        if LOST_EVENT in self._storms.held(candidates, now=True):
            return []
        return self._store.lost_events(grace, settled)

    def queue(self) -> int:
        """Send the tasks of due repos. A crash between the row and its message is what `requeue` finds."""
        tasks = self._store.due(self._settings.tuning.queue_batch, self._storms.held())
        if tasks:
            self._storms.count(task.reason for task in tasks)
            self._producer.send([Out(task_topic(task.attempt), task.did, wire.encode(task)) for task in tasks])
        return len(tasks)

    def requeue(self) -> int:
        """Make repos due whose message cannot come any more: the group has passed everything as old as they are."""
        queued = self._store.queued_long(
            self._store.now() - self._settings.tuning.requeue_after_seconds, self._settings.tuning.queue_batch
        )
        if not queued:
            return 0
        # messages follow their rows, so one of these repos can only stand before the first message younger than all
        youngest = max(at for _, _, at in queued) + self._settings.tuning.requeue_after_seconds
        gone = lost_tasks(queued, self._passed(youngest))
        if gone:
            self._store.unqueue(gone)
        return len(gone)

    def _passed(self, seconds: float) -> dict[Part, bool]:
        """Task partitions of which the backfill group has read everything that was written before a time."""
        parts = self._positions.parts(TASK_TOPICS)
        # positions first: a message that comes while we look is then read as one that nobody has passed
        positions = self._positions.committed("backfill", parts)
        ends = self._positions.ends(parts)
        younger = self._positions.offsets(parts, OffsetSpec.for_timestamp(int(seconds * 1000)))
        starts = self._positions.starts(parts)
        passed = {}
        for part in parts:
            first_younger = ends[part] if younger[part] == NO_OFFSET else younger[part]
            passed[part] = max(positions.get(part, 0), starts[part]) >= first_younger
        return passed


def lost_tasks(queued: Sequence[tuple[str, int, float]], passed: dict[Part, bool]) -> list[str]:
    """DIDs of (did, attempt, queued_at) whose message was passed in the partition that it can only be in."""
    partitions = {topic: sum(part[0] == topic for part in passed) for topic in TASK_TOPICS}
    return [
        did for did, attempt, _ in queued if passed[topic := task_topic(attempt), partition_of(did, partitions[topic])]
    ]
