"""The source that all flows share: a position covers what is durable, never what was merely received (G8).

How the engine calls a partition: `next_batch()` again and again; at the end of every epoch `snapshot()`; and the first
`next_batch()` after that only when all sinks have written everything emitted before. So the position is remembered in
`snapshot()` and committed in the `next_batch()` that follows. `close()` is called before the last items are written:
nothing is ever committed there.

On `STOP` a partition drains: it takes no more from upstream, gives out what it has, commits, and ends.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from typing_extensions import override

from connectors.runtime import watchdog
from connectors.runtime.health import Health
from connectors.runtime.retry_database import retry_database
from connectors.runtime.stop import STOP

X = TypeVar("X")
P = TypeVar("P")

FLOW_TURN = "the flow's thread"
IDLE_SECONDS = 0.01  # how long the engine waits after an empty poll; far below a second, or other sources would stall


class CheckpointedPartition(StatefulSourcePartition[X, None], Generic[X, P]):
    """One partition with a durable position. Subclasses say what poll, position, commit and drained mean."""

    _turn: AbstractContextManager[object] | None = None

    def __init__(self, health: Health) -> None:
        self.health = health
        self._committed: P | None = None
        self._pending: P | None = None
        self._draining = False
        self._idle = False

    @abstractmethod
    def poll(self) -> list[X]:
        """Items that are ready now; never blocks. Raises what killed the background work (B8)."""

    @abstractmethod
    def position(self) -> P | None:
        """Where a restart would continue, covering everything polled so far; None: nothing is ours, so nothing to commit."""

    @abstractmethod
    def commit(self, position: P) -> P | None:
        """What has been emitted up to `position` is durable downstream: make the position durable too.

        Returns the position that is durable now where it is an earlier one: some of it waits to be emitted.

        Called again where it raised psycopg.OperationalError: what it took must then still be there.
        """

    def drain(self) -> None:  # optional
        """Called once when the process is to stop: take no more from upstream."""

    def drained(self) -> bool:
        """After `drain`: has everything taken been polled?"""
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
        self._idle = not batch
        if not batch and self._draining and self.drained() and self.position() in (None, self._committed):
            self._leave()
            raise StopIteration
        return batch

    def _mark(self) -> None:
        """The flow's thread must come here again, and go on, within `watchdog_seconds` (connectors/runtime/watchdog.py)."""
        if self._turn is None:
            self._turn = watchdog.watched(FLOW_TURN)
            self._turn.__enter__()
        watchdog.mark()

    def _leave(self) -> None:
        if self._turn is not None:
            self._turn.__exit__(None, None, None)
            self._turn = None

    @override
    def next_awake(self) -> datetime | None:
        return datetime.now(UTC) + timedelta(seconds=IDLE_SECONDS) if self._idle else None

    @override
    def snapshot(self) -> None:
        position = self.position()
        if position is not None and position != self._committed:
            self._pending = position


class CheckpointedSource(FixedPartitionedSource[X, None]):
    """A source of one checkpointed partition, built when the flow starts (constructors never connect)."""

    def __init__(self, build: Callable[[], CheckpointedPartition[X, Any]]) -> None:
        self._build = build

    @override
    def list_parts(self) -> list[str]:
        return ["0"]

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> CheckpointedPartition[X, Any]:
        return self._build()
