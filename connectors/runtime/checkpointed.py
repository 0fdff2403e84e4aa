"""The source that all flows share. A committed position covers only what is durable, never what was merely received (G8).

The engine calls `next_batch()` repeatedly and `snapshot()` at the end of every checkpoint interval. It calls the next `next_batch()` only
after all sinks have written everything emitted before. So the position is recorded in `snapshot()` and committed in the
following `next_batch()`. `close()` runs before the last items are written, so nothing is committed there.

An empty poll is repeated after a rest, which ends as soon as there is work (`work.ring`). The engine itself would poll a thousand
times a second. A flow has one source, so a rest delays nothing else.

On `STOP` a partition drains: it stops reading from upstream, emits what it has, commits, and ends.
"""

import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from connectors.runtime import watchdog, work
from connectors.runtime.health import Health
from connectors.runtime.retry_database import retry_database
from connectors.runtime.stop import STOP

X = TypeVar("X")
P = TypeVar("P")

FLOW_THREAD = "the flow's thread"
DRAIN_POLL_SECONDS = 0.01
AT_ONCE = datetime.fromtimestamp(0, UTC)  # the engine counts from before the poll: now() adds the poll's duration


class CheckpointedPartition(StatefulSourcePartition[X, None], Generic[X, P]):
    """One partition with a durable position. Subclasses implement poll, position and commit, and if needed drain and drained."""

    rests = False
    """Whether `next_batch` may wait for work: in a thread of the engine, but not in a loop that also brings the work."""
    _watched: AbstractContextManager[object] | None = None

    def __init__(self, health: Health) -> None:
        self.health = health
        self._committed: P | None = None
        self._pending: P | None = None
        self._draining = False

    @abstractmethod
    def poll(self) -> list[X]:
        """Items that are ready now; never blocks. Raises the error that ended the background work (B8)."""

    def busy(self) -> bool:  # optional
        """Whether the next poll is due at once, although the last one was empty."""
        return False

    @abstractmethod
    def position(self) -> P | None:
        """The position after everything polled so far, where a restart would continue. None: nothing to commit."""

    @abstractmethod
    def commit(self, position: P) -> P | None:
        """Make `position` durable; everything emitted up to it is durable downstream.

        Returns the position made durable; None stands for `position`. It is an earlier one while items before `position`
        have not been emitted.
        Must be safe to repeat: it is called again after a psycopg.OperationalError.
        """

    def drain(self) -> None:  # optional
        """Stop reading from upstream. Called once when the process stops."""

    def drained(self) -> bool:
        """Whether everything read before `drain` has been polled."""
        return True

    @override
    def next_batch(self) -> list[X]:
        self._mark()
        if (pending := self._pending) is not None:
            earlier = retry_database(lambda: self.commit(pending), self.health)
            self._committed, self._pending = pending if earlier is None else earlier, None
            self.health.progressed()
        if STOP.is_set() and not self._draining:
            self._draining = True
            self.drain()
        batch = self.poll()
        watchdog.mark()
        if self.rests and not batch and not self.busy():
            batch = self._poll_after_rest()
        if not batch and self._draining and self.drained() and self.position() in (None, self._committed):
            self._leave()
            raise StopIteration
        return batch

    def _poll_after_rest(self) -> list[X]:
        if self._draining:
            time.sleep(DRAIN_POLL_SECONDS)
        else:
            work.rest(work.IDLE_SECONDS if self.position() in (None, self._committed) else work.REST_SECONDS)
        batch = self.poll()
        watchdog.mark()
        return batch

    def _mark(self) -> None:
        """Register the flow's thread with the watchdog on the first call, and mark its progress."""
        if self._watched is None:
            self._watched = watchdog.watched(FLOW_THREAD)
            self._watched.__enter__()
        watchdog.mark()

    def _leave(self) -> None:
        if self._watched is not None:
            self._watched.__exit__(None, None, None)
            self._watched = None

    @override
    def next_awake(self) -> datetime:
        return AT_ONCE

    @override
    def snapshot(self) -> None:
        position = self.position()
        if position is not None and position != self._committed:
            self._pending = position


class CheckpointedSource(FixedPartitionedSource[X, None]):
    """A source with one checkpointed partition, which is built, and connects, when the flow starts."""

    def __init__(self, build: Callable[[], CheckpointedPartition[X, Any]]) -> None:
        self._build = build

    @override
    def list_parts(self) -> list[str]:
        return ["0"]

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> CheckpointedPartition[X, Any]:
        partition = self._build()
        partition.rests = True
        return partition
