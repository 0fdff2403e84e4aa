"""The control process: scheduler, reaper and lag figures, one step a second, until it is told to stop.

`run(settings, health)` returns soon after `STOP` is set, also while a call waits for a broker that is gone: a step may be
cut at any point. A database or broker that does not answer is waited for, with the reason in the health page; anything
else ends the process with its error (B8).
"""

import logging
import threading
import time
from collections import Counter

import psycopg

from connectors import metrics
from connectors.database import tuples
from connectors.handles import HandleChecks
from connectors.log import LogUnavailable
from connectors.log_producer import LogProducer
from connectors.process import STOP, Health
from connectors.repos import RepoStore
from control.dead_letters import LetterIndex
from control.errors import one_line
from control.filters import FilterWalk
from control.gauges import Gauges
from control.positions import Positions, Standing
from control.pruning import Pruning
from control.scheduler import Leader, Scheduler, Step
from control.second_looks import SecondLooks
from schemas.settings import Settings

LAG_SECONDS = 5.0
LOOK_SECONDS = 0.2
STOP_SECONDS = 1.5
WAIT_FIRST_SECONDS = 0.5
WAIT_MAX_SECONDS = 15.0

LENGTHS = (  # the predecessor's names: topic or group
    (metrics.LIVE_LENGTH, "firehose_live"),
    (metrics.BACKFILL_LENGTH, "firehose_backfill"),
    (metrics.OUTPUT_LENGTH, "firehose_backfill"),
    (metrics.TASKS_LENGTH, "repo_backfill"),
    (metrics.LABEL_LENGTH, "label_live"),
    (metrics.INDEX_PENDING, "index"),
)

logger = logging.getLogger("control")


def run(settings: Settings, health: Health) -> None:
    """Lead or stand by until `STOP`. Raises what ended the work."""
    died: list[BaseException] = []

    def work() -> None:
        try:
            _work(settings, health)
        except BaseException as err:  # raised in the main thread
            died.append(err)

    thread = threading.Thread(target=work, name="control", daemon=True)
    thread.start()
    while thread.is_alive() and not STOP.wait(LOOK_SECONDS):
        pass
    thread.join(STOP_SECONDS)
    if died:
        raise died[0]


def _work(settings: Settings, health: Health) -> None:
    store = RepoStore(settings)
    database = tuples(settings, "sluice control")
    positions = Positions(settings)
    scheduler = Scheduler(settings, store, LogProducer(settings), positions)
    leader = Leader(settings)
    letters = LetterIndex(settings)
    gauges = Gauges(settings)
    gauges.start()
    handles = HandleChecks(settings)
    walk = FilterWalk()
    pruning = Pruning(positions, settings.history_days)
    second_looks = SecondLooks(settings)
    second_looks.start()
    lag_at, wait = 0.0, WAIT_FIRST_SECONDS
    while not STOP.is_set():
        gauges.check()
        second_looks.check()
        try:
            leads = second_looks.leads = leader.leads()
            handles.step(leads=leads)
            step = scheduler.step() if leads else Step()
            if leads:
                walk.steps(database())
                pruning.step(database())
            letters.step(database())
            if time.monotonic() >= lag_at:
                export_lag(positions.standings(database()))
                lag_at = time.monotonic() + LAG_SECONDS
        except (psycopg.OperationalError, LogUnavailable) as err:
            health.report("failing", one_line(err))
            STOP.wait(wait)
            wait = min(wait * 2, WAIT_MAX_SECONDS)
            continue
        wait = WAIT_FIRST_SECONDS
        _report(health, step, leads=leads)
        if step.queued < settings.queue_batch:
            STOP.wait(settings.control_interval_seconds)
    handles.close()
    gauges.stop()
    second_looks.stop()
    letters.close()
    leader.close()
    store.close()
    scheduler.close()
    database.close()


def _report(health: Health, step: Step, *, leads: bool) -> None:
    if not leads:
        health.report("idle", "another control process leads")
        return
    health.report("idle" if step.idle else "working")
    health.progressed()
    if step.requeued or step.reaped or step.lost_events:
        fields = {"requeued": step.requeued, "reaped": step.reaped, "lost_events": step.lost_events}
        logger.warning("work was taken back", extra=fields)
    for name in ("queued", "requeued", "reaped", "lost_events"):
        metrics.SCHEDULED.labels(name).inc(getattr(step, name))


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
        lag[standing.group] += standing.lag
        lost[standing.group, standing.topic] += standing.lost
    for place, count in lost.items():
        metrics.LOST_MESSAGES.labels(*place).set(count)
    for gauge, name in LENGTHS:
        gauge.set(lag[name])
