"""The control process: scheduler, reaper, dead letters and gauges, each a step in a thread of its own.

`run(settings, health)` returns soon after `STOP` is set, even while a call to an unreachable broker blocks: every step is safe to
interrupt. Steps run independently (control/tasks/step_thread.py): one whose database or broker does not answer is
retried, and the health page shows why; any other error ends the process (B8).
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from connectors.identity.handle_checks import HandleChecks
from connectors.kafka.offsets import Offsets, PartitionLag
from connectors.kafka.producer import LogProducer
from connectors.postgres.connection import Database, tuple_database
from connectors.postgres.sharded_queue import repo_queue
from connectors.postgres.shards import with_main
from connectors.runtime import metrics, watchdog
from connectors.runtime.errors import one_line
from connectors.runtime.health import Health
from connectors.runtime.stop import STOP
from connectors.runtime.worker_thread import WorkerThread
from control import sharded_filter
from control.dead_letter_index import DeadLetterIndex
from control.filter_changes import FilterWalk
from control.sharded_filter import ShardWalks
from control.tasks.dead_letter_retry import DeadLetterRetry
from control.tasks.figures import EVERY_SECONDS, FigureWriter
from control.tasks.gauges import Gauges
from control.tasks.obsolete_rows import ObsoleteRows
from control.tasks.restored import WHY, RestoreBarrier
from control.tasks.scheduler import Leader, Scheduler
from control.tasks.shared_offsets import SharedOffsets
from control.tasks.step_thread import Close, ControlStep, StepResult, StepThread, Work
from schemas.settings import Settings

LAG_SECONDS = 10.0
RECOVER_SECONDS = 5.0
STOP_CHECK_SECONDS = 1.0
STOP_SECONDS = 1.5
LEAD_SECONDS = 5.0
STATEMENT_SECONDS = 120.0

Connection = psycopg.Connection[tuple[Any, ...]]

logger = logging.getLogger("control")


def run(settings: Settings, health: Health) -> None:
    """Lead or stand by until `STOP`. Raises the error that ended the work."""
    worker = WorkerThread("control", lambda: _Control(settings, health).run())
    worker.start()
    while worker.alive and not STOP.wait(STOP_CHECK_SECONDS):
        pass
    worker.stop(STOP_SECONDS)
    worker.check()


class _Control:
    """Holds the leadership and the threads of the steps."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._leader = Leader(settings)
        self._leads = False
        self._handles = HandleChecks(settings)
        self._retry = DeadLetterRetry(settings)
        self._restoring: bool | None = (
            None  # the main database was restored, and waits for the index; None: not known yet
        )
        self._restoring_shards: list[str] = []  # likewise; the queue leaves them out
        offsets = SharedOffsets(settings)
        self._steps = {step.name: StepThread(step, self._may_schedule) for step in steps(settings, offsets)}
        restored = ControlStep("restored", self._restored_step, settings.tuning.control_interval_seconds)
        self._steps["restored"] = StepThread(restored, lambda: self._leads and self._restores_later())
        self._workers = [
            Gauges(settings, offsets).worker,
            self._retry.worker,
            *(step.worker for step in self._steps.values()),
        ]

    def run(self) -> None:
        """Until `STOP`. Raises the error that ended a thread."""
        for worker in self._workers:
            worker.start()
        try:
            while not STOP.is_set():
                watchdog.mark()
                self._report(self._lead())
                watchdog.wait(STOP, min(self._settings.tuning.control_interval_seconds, LEAD_SECONDS))
        finally:
            self._stop()

    def _lead(self) -> str:
        """Lead if no other process does. Returns the problem, or ''. Raises the error that ended a thread."""
        for worker in self._workers:
            worker.check()
        problem = ""
        try:
            self._leads = self._leader.leads()
        except psycopg.OperationalError as err:
            self._leads, problem = False, one_line(err)
        self._retry.leads = self._leads
        self._handles.step(leads=self._leads)
        return problem

    def _may_schedule(self) -> bool:
        return self._leads and self._restoring is False

    def _restores_later(self) -> bool:
        """Whether a database may still be a restored one: with several shards any that did not answer yet."""
        return self._restoring is not False or bool(self._settings.shards)

    def _restored_step(self) -> tuple[Work, Close]:
        def made(one: Settings) -> tuple[Database[TupleRow], RestoreBarrier]:
            database = tuple_database(one, "sluice control", statement_seconds=STATEMENT_SECONDS)
            return database, RestoreBarrier(one, Offsets(one), lambda: lifted(one))

        def lifted(one: Settings) -> None:
            if self._settings.shards:
                sharded_filter.restored(self._settings, main[0](), one.database)

        main, shards = with_main(self._settings, made)

        def pending(barrier: tuple[Database[TupleRow], RestoreBarrier]) -> bool:
            return barrier[1].pending(barrier[0]())

        def work() -> StepResult:
            if self._settings.shards:
                found = shards.gather(dict.fromkeys(range(len(shards.names)), pending), STATEMENT_SECONDS)
                self._restoring_shards = [shards.names[number] for number, waits in found.items() if waits]
            self._restoring = pending(main)
            if not self._restores_later():
                close()
            return StepResult()

        def close() -> None:
            for database, _ in (main, *shards.all()):
                database.close()

        return work, close

    def _report(self, problem: str) -> None:
        done = sum((step.take() for step in self._steps.values()), StepResult())
        for name in ("queued", "requeued", "reaped", "lost_events"):
            metrics.SCHEDULED.labels(name).inc(getattr(done, name))
        if done.requeued or done.reaped or done.lost_events:
            fields = {"requeued": done.requeued, "reaped": done.reaped, "lost_events": done.lost_events}
            logger.warning("repos were queued again or reclaimed", extra=fields)
        failing = [f"{name}: {step.problem}" for name, step in self._steps.items() if step.problem]
        if problem or failing:
            self._health.report("failing", "; ".join([problem] if problem else failing)[:1000])
        elif not self._leads:
            self._health.report("idle", "another control process leads")
        elif self._restoring:
            self._health.report("paused", WHY)
            self._health.progressed()
        else:
            why = f"shards {' '.join(self._restoring_shards)}: {WHY}" if self._restoring_shards else ""
            self._health.report("idle" if done.idle else "working", why)
            self._health.progressed()

    def _stop(self) -> None:
        self._handles.close()
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.stop(STOP_SECONDS / len(self._workers))
        self._leader.close()


def steps(settings: Settings, offsets: SharedOffsets) -> list[ControlStep]:
    """All steps. Each is built in its own thread; the constructors do not connect."""
    often = settings.tuning.control_interval_seconds

    def scheduling(name: str) -> Callable[[], tuple[Work, Close]]:
        def build() -> tuple[Work, Close]:
            store = repo_queue(settings, STATEMENT_SECONDS)
            scheduler = Scheduler(settings, store, LogProducer(settings), Offsets(settings))
            work: Work = getattr(scheduler, name)

            def close() -> None:
                store.close()
                scheduler.close()

            return work, close

        return build

    def with_database(made: Callable[[], Callable[[Connection], object]]) -> Callable[[], tuple[Work, Close]]:
        def build() -> tuple[Work, Close]:
            database, run = tuple_database(settings, "sluice control", statement_seconds=STATEMENT_SECONDS), made()

            def work() -> StepResult:
                run(database())
                return StepResult()

            return work, database.close

        return build

    def filters() -> Callable[[Connection], object]:
        return ShardWalks(settings, STATEMENT_SECONDS).steps if settings.shards else FilterWalk().steps

    return [
        ControlStep(
            "recover", scheduling("recover"), max(often, min(RECOVER_SECONDS, settings.tuning.lease_seconds / 12))
        ),
        ControlStep("queue", scheduling("queued"), often, again=settings.tuning.queue_batch),
        ControlStep("requeue", scheduling("requeued"), settings.tuning.requeue_after_seconds / 3),
        ControlStep("filters", with_database(filters), often),
        ControlStep("obsolete rows", lambda: _obsolete_rows(settings, offsets), often),
        ControlStep("figures", with_database(lambda: FigureWriter(settings, offsets).step), EVERY_SECONDS),
        ControlStep("dead_letters", lambda: _dead_letters(settings), often, leader_only=False),
        ControlStep(
            "lag", with_database(lambda: lambda db: export_lag(offsets.lags(db))), LAG_SECONDS, leader_only=False
        ),
    ]


def _obsolete_rows(settings: Settings, offsets: SharedOffsets) -> tuple[Work, Close]:
    main, shards = with_main(
        settings, lambda one: tuple_database(one, "sluice control", statement_seconds=STATEMENT_SECONDS)
    )
    rows = ObsoleteRows(offsets, settings.tuning.history_days)

    def work() -> StepResult:
        if rows.due:
            rows.step(main(), shards)
            if not rows.due:
                close()  # for ten minutes
        return StepResult()

    def close() -> None:
        for database in (main, *shards.all()):
            database.close()

    return work, close


def _dead_letters(settings: Settings) -> tuple[Work, Close]:
    database = tuple_database(settings, "sluice control", statement_seconds=STATEMENT_SECONDS)
    index = DeadLetterIndex(settings)

    def work() -> StepResult:
        index.step(database())
        return StepResult()

    def close() -> None:
        index.close()
        database.close()

    return work, close


def export_lag(lags: list[PartitionLag]) -> None:
    """Export the lag of every group. `PAST_END` is 1 for a group past the end of its topic; an alert uses it (B9)."""
    for one in lags:
        labels = (one.group, one.topic, str(one.partition))
        metrics.LAG.labels(*labels).set(one.lag)
        metrics.PAST_END.labels(*labels).set(float(one.past_end))
    total: Counter[str] = Counter()
    lost: Counter[tuple[str, str]] = Counter()
    for one in lags:
        total[one.topic] += one.lag
        lost[one.group, one.topic] += one.lost
    for place, count in lost.items():
        metrics.LOST_MESSAGES.labels(*place).set(count)
    for topic, count in total.items():
        metrics.TOPIC_LAG.labels(topic).set(count)
