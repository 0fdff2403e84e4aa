"""Control's steps, each in a thread with its own clients: one that fails is tried again by itself and holds up no other.

A `Kind` says how often its work runs, whether only the leader does it, and how to build it: `build()` gives the work and what
closes its clients. Where the broker did not answer, they are closed and built anew, because a client of librdkafka that failed
may fail for ever. Every call in a step has a deadline; the watchdog ends the process where one has none.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

import psycopg

from connectors.kafka.log import LogUnavailable
from connectors.runtime import metrics, watchdog
from connectors.runtime.errors import one_line
from connectors.runtime.stop import STOP, Stopping
from steps.backoff import backoff_seconds

WAIT_FIRST_SECONDS = 0.5
WAIT_MAX_SECONDS = 15.0
NAP_SECONDS = 1.0  # to see `stop`

logger = logging.getLogger("control")


@dataclass(frozen=True, slots=True)
class Step:
    """What steps did: repos queued, queued anew because their message is gone, taken back, lost events found."""

    queued: int = 0
    requeued: int = 0
    reaped: int = 0
    lost_events: int = 0

    @property
    def idle(self) -> bool:
        return not (self.queued or self.requeued or self.reaped or self.lost_events)

    def __add__(self, other: "Step") -> "Step":
        return Step(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Step)))


Work = Callable[[], Step]
Close = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work. `again`: with so many repos queued there is more, and it runs again at once."""

    name: str
    build: Callable[[], tuple[Work, Close]]
    every_seconds: float
    leader_only: bool = True
    again: int = 1 << 62


class StepThread:
    """Runs one kind of work until `stop`. `leads` says whether this process leads."""

    def __init__(self, kind: Kind, leads: Callable[[], bool]) -> None:
        self._kind = kind
        self._leads = leads
        self._ended = threading.Event()
        self._died: BaseException | None = None
        self._lock = threading.Lock()
        self._done = Step()
        self._failures = 0
        self._built: tuple[Work, Close] | None = None
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name=f"control {kind.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def check(self) -> None:
        """Raise what ended the thread (B8)."""
        if self._died is not None:
            raise self._died

    def take(self) -> Step:
        """What was done since the last call."""
        with self._lock:
            done, self._done = self._done, Step()
        return done

    def stop(self, seconds: float) -> None:
        """End it; a call that runs is waited for at most so long."""
        self._ended.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            with watchdog.watched(f"control's step {self._kind.name}"):
                while not self._stopping:
                    if self._leads() or not self._kind.leader_only:
                        self._nap(self._once())
                    else:
                        self.problem = ""
                        self._nap(self._kind.every_seconds)
        except Stopping:
            pass
        except BaseException as err:  # raised by `check`, in control's thread
            self._died = err
        finally:
            self._close()

    @property
    def _stopping(self) -> bool:
        return self._ended.is_set() or STOP.is_set()

    def _once(self) -> float:
        """One round; seconds to wait before the next."""
        try:
            self._built = self._built or self._kind.build()
            done = self._built[0]()
        except (psycopg.OperationalError, LogUnavailable) as err:
            return self._failed(err)
        if self.problem:
            logger.info("a step works again", extra={"step": self._kind.name})
        self._failures, self.problem = 0, ""
        with self._lock:
            self._done += done
        return 0.0 if done.queued >= self._kind.again else self._kind.every_seconds

    def _failed(self, err: Exception) -> float:
        problem = one_line(err)
        metrics.STEPS_FAILED.labels(self._kind.name).inc()
        if problem != self.problem:
            logger.warning("a step failed and is tried again", extra={"step": self._kind.name, "why": problem})
        self.problem = problem
        if isinstance(err, LogUnavailable):
            self._close()
        self._failures += 1
        return backoff_seconds(self._failures, WAIT_FIRST_SECONDS, WAIT_MAX_SECONDS)

    def _close(self) -> None:
        built, self._built = self._built, None
        if built is not None:
            built[1]()

    def _nap(self, seconds: float) -> None:
        while seconds > 0 and not self._stopping:
            watchdog.rest(STOP, min(seconds, NAP_SECONDS))
            seconds -= NAP_SECONDS
