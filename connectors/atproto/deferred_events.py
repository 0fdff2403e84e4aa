"""What a flow's steps have deferred for want of keys, as its source sees it, and as a single frame waits for it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from connectors.identity.key_ring import KeyRing
from connectors.runtime import metrics
from steps.deferred import Deferred

T = TypeVar("T")


class ForKeys:
    """Deferred events that wait for the answers of a key ring."""

    def __init__(self, flow: str, deferred: Deferred[Any], ring: KeyRing[Any]) -> None:
        self._flow = flow
        self._deferred = deferred
        self._ring = ring

    @property
    def ready(self) -> bool:
        """Whether some of it can be judged now."""
        return self._deferred.more or self._ring.ready

    @property
    def waiting(self) -> bool:
        """Whether anything is deferred."""
        return len(self._deferred) > 0

    @property
    def full(self) -> bool:
        """Whether what waits for the PLC directory has used up its bytes."""
        metrics.DEFERRED.labels(self._flow).set(len(self._deferred))
        metrics.DEFERRED_BYTES.labels(self._flow).set(self._deferred.size)
        return self._deferred.full(trusted=True)

    @property
    def problem(self) -> str:
        """Why the PLC directory's answers do not come, or ''."""
        return self._ring.problem

    def passable(self, upstream: str, seq: int) -> int:
        """The highest position up to `seq` that passes nothing deferred."""
        return self._deferred.passable(upstream, seq)


def finished(
    step: Callable[[list[T]], Sequence[Any]], one: T, deferred: Deferred[Any], ring: KeyRing[Any]
) -> list[Any]:
    """A step's output for one frame, with what it deferred. Raises Stopping."""
    out = [*step([one])]
    while len(deferred):
        if not deferred.more:
            ring.wait()
        out += step([])
    return out
