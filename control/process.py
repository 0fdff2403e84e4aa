"""The control process: scheduler, reaper, dead letters and lag figures, each a step of its own, until it is told to stop.

`run(settings, health)` returns soon after `STOP` is set, also while a call waits for a broker that is gone: a step may be
cut at any point. Steps run beside each other (control/tasks/runner.py): one that meets a database or broker that does not answer is
tried again, with the reason in the health page; any other error ends the process (B8).
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg

from connectors.identity.handle_checks import HandleChecks
from connectors.kafka.offsets import Positions, Standing
from connectors.kafka.producer import LogProducer
from connectors.postgres.connection import tuples
from connectors.postgres.repo_queue import RepoQueue
from connectors.runtime import metrics, watchdog
from connectors.runtime.errors import one_line
from connectors.runtime.health import Health
from connectors.runtime.stop import STOP
from control.dead_letters import LetterIndex
from control.filters import FilterWalk
from control.tasks.dead_letter_retry import SecondLooks
from control.tasks.gauges import Gauges
from control.tasks.pruning import Pruning
from control.tasks.restored import WHY, Restored
from control.tasks.runner import Close, Kind, Step, StepThread, Work
from control.tasks.scheduler import Leader, Scheduler
from schemas.settings import Settings

LAG_SECONDS = 5.0
LOOK_SECONDS = 0.2
STOP_SECONDS = 1.5
LEAD_SECONDS = 5.0
STATEMENT_SECONDS = 120.0

Connection = psycopg.Connection[tuple[Any, ...]]

logger = logging.getLogger("control")


def run(settings: Settings, health: Health) -> None:
    """Lead or stand by until `STOP`. Raises what ended the work."""
    died: list[BaseException] = []

    def work() -> None:
        try:
            _Control(settings, health).run()
        except BaseException as err:  # raised in the main thread
            died.append(err)

    thread = threading.Thread(target=work, name="control", daemon=True)
    thread.start()
    while thread.is_alive() and not STOP.wait(LOOK_SECONDS):
        pass
    thread.join(STOP_SECONDS)
    if died:
        raise died[0]


class _Control:
    """Leadership, the steps, and the threads beside them."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._leader = Leader(settings)
        self._leads = False
        self._gauges = Gauges(settings)
        self._handles = HandleChecks(settings)
        self._second_looks = SecondLooks(settings)
        self._restored: bool | None = None  # whether the index has still to read the log; None: not known yet
        self._steps = {kind.name: StepThread(kind, self._works) for kind in kinds(settings)}
        after_restore = Kind("restored", self._after_restore, settings.tuning.control_interval_seconds)
        self._steps["restored"] = StepThread(after_restore, lambda: self._leads and self._restored is not False)

    def run(self) -> None:
        """Until `STOP`. Raises what ended a thread."""
        self._gauges.start()
        self._second_looks.start()
        for step in self._steps.values():
            step.start()
        try:
            with watchdog.watched("control"):
                while not STOP.is_set():
                    watchdog.mark()
                    self._report(self._lead())
                    watchdog.rest(STOP, min(self._settings.tuning.control_interval_seconds, LEAD_SECONDS))
        finally:
            self._stop()

    def _lead(self) -> str:
        """Lead if nobody else does, and raise what ended a thread; what is wrong, or ''."""
        self._gauges.check()
        self._second_looks.check()
        for step in self._steps.values():
            step.check()
        problem = ""
        try:
            self._leads = self._leader.leads()
        except psycopg.OperationalError as err:
            self._leads, problem = False, one_line(err)
        self._second_looks.leads = self._leads
        self._handles.step(leads=self._leads)
        return problem

    def _works(self) -> bool:
        return self._leads and self._restored is False

    def _after_restore(self) -> tuple[Work, Close]:
        database = tuples(self._settings, "sluice control", statement_seconds=STATEMENT_SECONDS)
        restored = Restored(self._settings, Positions(self._settings))

        def work() -> Step:
            self._restored = restored.waits(database())
            return Step()

        return work, database.close

    def _report(self, problem: str) -> None:
        done = sum((step.take() for step in self._steps.values()), Step())
        for name in ("queued", "requeued", "reaped", "lost_events"):
            metrics.SCHEDULED.labels(name).inc(getattr(done, name))
        if done.requeued or done.reaped or done.lost_events:
            fields = {"requeued": done.requeued, "reaped": done.reaped, "lost_events": done.lost_events}
            logger.warning("work was taken back", extra=fields)
        failing = [f"{name}: {step.problem}" for name, step in self._steps.items() if step.problem]
        if problem or failing:
            self._health.report("failing", "; ".join([problem] if problem else failing)[:1000])
        elif not self._leads:
            self._health.report("idle", "another control process leads")
        elif self._restored:
            self._health.report("paused", WHY)
            self._health.progressed()
        else:
            self._health.report("idle" if done.idle else "working")
            self._health.progressed()

    def _stop(self) -> None:
        self._handles.close()
        self._gauges.stop()
        self._second_looks.stop()
        for step in self._steps.values():
            step.stop(STOP_SECONDS / len(self._steps))
        self._leader.close()


def kinds(settings: Settings) -> list[Kind]:
    """All steps. Each is built in its own thread; constructors never connect."""
    often = settings.tuning.control_interval_seconds

    def scheduling(name: str) -> Callable[[], tuple[Work, Close]]:
        def build() -> tuple[Work, Close]:
            store = RepoQueue(settings, STATEMENT_SECONDS)
            scheduler = Scheduler(settings, store, LogProducer(settings), Positions(settings))
            work: Work = getattr(scheduler, name)

            def close() -> None:
                store.close()
                scheduler.close()

            return work, close

        return build

    def with_database(made: Callable[[], Callable[[Connection], object]]) -> Callable[[], tuple[Work, Close]]:
        def build() -> tuple[Work, Close]:
            database, run = tuples(settings, "sluice control", statement_seconds=STATEMENT_SECONDS), made()

            def work() -> Step:
                run(database())
                return Step()

            return work, database.close

        return build

    def lag() -> Callable[[Connection], object]:
        positions = Positions(settings)
        return lambda db: export_lag(positions.standings(db))

    return [
        Kind("recover", scheduling("recover"), often),
        Kind("queue", scheduling("queued"), often, again=settings.tuning.queue_batch),
        Kind("requeue", scheduling("requeued"), settings.tuning.requeue_after_seconds / 3),
        Kind("filters", with_database(lambda: FilterWalk().steps), often),
        Kind("pruning", with_database(lambda: Pruning(Positions(settings), settings.history_days).step), often),
        Kind("letters", lambda: _letters(settings), often, leader_only=False),
        Kind("lag", with_database(lag), LAG_SECONDS, leader_only=False),
    ]


def _letters(settings: Settings) -> tuple[Work, Close]:
    database = tuples(settings, "sluice control", statement_seconds=STATEMENT_SECONDS)
    index = LetterIndex(settings)

    def work() -> Step:
        index.step(database())
        return Step()

    def close() -> None:
        index.close()
        database.close()

    return work, close


def export_lag(standings: list[Standing]) -> None:
    """Lag of every group as metrics; a group past the end of its topic is an error that somebody must see (B9)."""
    for standing in standings:
        labels = (standing.group, standing.topic, str(standing.partition))
        metrics.LAG.labels(*labels).set(standing.lag)
        metrics.PAST_END.labels(*labels).set(float(standing.past_end))
    lag: Counter[str] = Counter()
    lost: Counter[tuple[str, str]] = Counter()
    for standing in standings:
        lag[standing.topic] += standing.lag
        lost[standing.group, standing.topic] += standing.lost
    for place, count in lost.items():
        metrics.LOST_MESSAGES.labels(*place).set(count)
    for topic, count in lag.items():
        metrics.TOPIC_LAG.labels(topic).set(count)
