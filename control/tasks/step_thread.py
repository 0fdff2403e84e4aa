"""Control's steps, each in a thread with its own clients: one that fails is retried alone and delays no other.

A `ControlStep` names a piece of work: how often it runs, whether only the leader does it, and how to build it. `build()` returns the
work and a function that closes its clients. After LogUnavailable they are closed and built again, because a client of librdkafka
that failed once may fail forever. Every call in a step has a deadline; the watchdog ends the process if one has none.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

import psycopg

from connectors.kafka.log import LogUnavailable
from connectors.runtime import metrics
from connectors.runtime.errors import one_line
from connectors.runtime.worker_thread import WorkerThread
from steps.backoff import backoff_seconds

WAIT_FIRST_SECONDS = 0.5
WAIT_MAX_SECONDS = 15.0

logger = logging.getLogger("control")


@dataclass(frozen=True, slots=True)
class StepResult:
    """Counts. `requeued`: repos whose message was lost; `reaped`: claims of dead workers; `lost_events`: found in this round."""

    queued: int = 0
    requeued: int = 0
    reaped: int = 0
    lost_events: int = 0

    @property
    def idle(self) -> bool:
        """Nothing was done."""
        return not (self.queued or self.requeued or self.reaped or self.lost_events)

    def __add__(self, other: "StepResult") -> "StepResult":
        return StepResult(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(StepResult)))


Work = Callable[[], StepResult]
Close = Callable[[], None]


@dataclass(frozen=True, slots=True)
class ControlStep:
    """One kind of work. `again`: after a round that queued this many repos, the next one starts at once."""

    name: str
    build: Callable[[], tuple[Work, Close]]
    every_seconds: float
    leader_only: bool = True
    again: int = 1 << 62


class StepThread:
    """Runs one step until `worker.stop()`. `leads()`: whether this process may do work that only the leader does."""

    def __init__(self, step: ControlStep, leads: Callable[[], bool]) -> None:
        self._step = step
        self._leads = leads
        self._lock = threading.Lock()
        self._done = StepResult()
        self._failures = 0
        self._built: tuple[Work, Close] | None = None
        self.problem = ""
        self.worker = WorkerThread(f"control step {step.name}", self._run)

    def take(self) -> StepResult:
        """Return the sum of the results since the last call."""
        with self._lock:
            done, self._done = self._done, StepResult()
        return done

    def _run(self) -> None:
        try:
            while not self.worker.stopping:
                if self._leads() or not self._step.leader_only:
                    self.worker.wait(self._once())
                else:
                    self.problem = ""
                    self.worker.wait(self._step.every_seconds)
        finally:
            self._close()

    def _once(self) -> float:
        """One round. Returns the seconds to wait before the next."""
        try:
            self._built = self._built or self._step.build()
            done = self._built[0]()
        except (psycopg.OperationalError, LogUnavailable) as err:
            return self._failed(err)
        if self.problem:
            logger.info("step succeeds again", extra={"step": self._step.name})
        self._failures, self.problem = 0, ""
        with self._lock:
            self._done += done
        return 0.0 if done.queued >= self._step.again else self._step.every_seconds

    def _failed(self, err: Exception) -> float:
        problem = one_line(err)
        metrics.STEPS_FAILED.labels(self._step.name).inc()
        if problem != self.problem:
            logger.warning("step failed and is retried", extra={"step": self._step.name, "why": problem})
        self.problem = problem
        if isinstance(err, LogUnavailable):
            self._close()
        self._failures += 1
        return backoff_seconds(self._failures, WAIT_FIRST_SECONDS, WAIT_MAX_SECONDS)

    def _close(self) -> None:
        built, self._built = self._built, None
        if built is not None:
            built[1]()
