"""The scheduler and the reaper: send a message for each repo that is due, and make the repos of dead workers due again.

The rows are authoritative and messages follow them, so every step may be repeated or interrupted at any point: a task that is sent
twice is claimed once (its attempt is the fence), and `requeue` finds one that was never sent. The holder of the `Leader` lock
runs these steps; two leaders at the same moment only waste work.
"""

import logging
import time
from collections.abc import Sequence

import psycopg
from confluent_kafka.admin import OffsetSpec
from psycopg.rows import TupleRow

from connectors.kafka.log import Part
from connectors.kafka.offsets import NO_OFFSET, Offsets
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.connection import tuple_database
from connectors.postgres.repo_queue import RepoQueue
from control.tasks.job_steps import JobSteps
from control.tasks.settled import Settled
from control.tasks.step_thread import StepResult
from control.tasks.storms import LOST_EVENT, Storms
from schemas import wire
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import REPO_BACKFILL, REPO_RESYNC
from steps.partitioner import partition_of

LEADER_KEY = 0x51_01_CF
TASK_TOPICS = (REPO_BACKFILL, REPO_RESYNC)
REAP_DELAY_SECONDS = 5.0
LEADER_SECONDS = 20.0

logger = logging.getLogger("control")


def task_topic(attempt: int) -> str:
    """Refetches have a topic of their own, so that they do not queue behind the first fetches of the network."""
    return REPO_RESYNC if attempt else REPO_BACKFILL


class Leader:
    """Elects one of several control processes by a session's advisory lock. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._connection = tuple_database(
            settings, "sluice leader", opened=self._opened, statement_seconds=LEADER_SECONDS
        )
        self._leads = False

    def _opened(self, _db: psycopg.Connection[TupleRow]) -> None:
        self._leads = False  # the lock ended with the old session

    def leads(self) -> bool:
        """Whether this process holds the lock now; tries to get it if not. Raises psycopg.OperationalError."""
        db = self._connection()
        if self._leads:
            db.execute("select 1")  # the session lives, so it still holds the lock
        else:
            self._leads = db.execute(queries("control")["lead"], (LEADER_KEY,)).fetchone() == (True,)
        return self._leads

    def close(self) -> None:
        """Release the lock."""
        self._connection.close()


class Scheduler:
    """The scheduling steps; each is safe to repeat. The constructor does not connect."""

    def __init__(self, settings: Settings, store: RepoQueue, producer: LogProducer, offsets: Offsets) -> None:
        self._settings = settings
        self._store = store
        self._producer = producer
        self._offsets = offsets
        self._jobs = JobSteps(settings, store, producer)
        self._settled = Settled(settings, offsets)
        self._storms = Storms(settings)
        self._next_requeue = 0.0

    def step(self) -> StepResult:
        """All steps once; `requeue` only when it is due. Raises psycopg.Error and LogUnavailable."""
        done = self.recover()
        if time.monotonic() >= self._next_requeue:
            done += self.requeued()
            self._next_requeue = time.monotonic() + self._settings.tuning.requeue_after_seconds / 3
        return done + self.queued()

    def recover(self) -> StepResult:
        """Take back the work of dead workers, and find lost events."""
        reaped = self._store.reap(self._offsets.cluster, REAP_DELAY_SECONDS)
        lost = self.lost_events()
        return StepResult(reaped=len(reaped), lost_events=len(lost))

    def queued(self) -> StepResult:
        """Queue the repos that are due, and the next batches of jobs."""
        return StepResult(queued=self.queue() + self._jobs.step())

    def requeued(self) -> StepResult:
        """`requeue` as a step."""
        return StepResult(requeued=self.requeue())

    def close(self) -> None:
        """Close the scheduler's own connections."""
        self._jobs.close()
        self._settled.close()
        self._storms.close()

    def lost_events(self) -> list[str]:
        """Make repos pending whose listed rev the streams never delivered; none while the streams are behind or a storm is held."""
        grace = self._settings.tuning.listed_rev_grace_seconds
        if not self._store.lost_candidates(grace, 1):
            if LOST_EVENT in self._storms.held():
                self._storms.held(0, now=True)  # the cause is gone
            return []
        settled = self._settled.until()
        candidates = self._store.lost_candidates(grace, 2 * self._storms.most(), settled)
        if LOST_EVENT in self._storms.held(candidates, now=True):
            return []
        return self._store.lost_events(grace, settled)

    def queue(self) -> int:
        """Send the tasks of due repos. After a crash between a row and its message, `requeue` finds the repo."""
        tasks = self._store.due(self._settings.tuning.queue_batch, self._storms.held())
        if tasks:
            self._storms.count(task.reason for task in tasks)
            self._producer.send([Out(task_topic(task.attempt), task.did, wire.encode(task)) for task in tasks])
        return len(tasks)

    def requeue(self) -> int:
        """Make repos due whose message is lost: the group has read everything up to the time when they were queued."""
        queued = self._store.queued_long(
            self._store.now() - self._settings.tuning.requeue_after_seconds, self._settings.tuning.queue_batch
        )
        if not queued:
            self._offsets.close()
            return 0
        # a message is sent after its row, so those of these repos precede the first message younger than all of them
        youngest = max(at for _, _, at in queued) + self._settings.tuning.requeue_after_seconds
        gone = lost_tasks(queued, self._passed(youngest))
        if gone:
            self._store.unqueue(gone)
        return len(gone)

    def _passed(self, seconds: float) -> dict[Part, bool]:
        """Task partition → whether the backfill group has read everything written before this Unix time."""
        parts = self._offsets.parts(TASK_TOPICS)
        # positions first: a message that arrives meanwhile then counts as unread
        positions = self._offsets.committed("backfill", parts)
        ends = self._offsets.ends(parts)
        younger = self._offsets.find(parts, OffsetSpec.for_timestamp(int(seconds * 1000)))
        starts = self._offsets.starts(parts)
        passed = {}
        for part in parts:
            first_younger = ends[part] if younger[part] == NO_OFFSET else younger[part]
            passed[part] = max(positions.get(part, 0), starts[part]) >= first_younger
        return passed


def lost_tasks(queued: Sequence[tuple[str, int, float]], passed: dict[Part, bool]) -> list[str]:
    """DIDs of (did, attempt, queued_at) whose message is lost: the group has read its partition far enough."""
    partitions = {topic: sum(part[0] == topic for part in passed) for topic in TASK_TOPICS}
    return [
        did for did, attempt, _ in queued if passed[topic := task_topic(attempt), partition_of(did, partitions[topic])]
    ]
