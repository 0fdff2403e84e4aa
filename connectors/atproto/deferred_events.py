"""Events that a flow has deferred because a key is unknown: memory limits, their status for the source, and `run_to_end`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from connectors.atproto.stream_sockets import Frame
from connectors.identity.key_ring import KeyRing
from connectors.runtime import metrics
from protocol.verify_commit import Verified
from steps.deferred import Deferred

T = TypeVar("T")

TRUSTED_BYTES = 64 * 1024 * 1024
"""Limit of events that wait for the PLC directory; above it the stream is paused."""
UNTRUSTED_BYTES = 24 * 1024 * 1024
"""Limit of events that wait for did:web hosts; above it further ones are refused."""
RELEASE_BYTES = 6 * 1024 * 1024
"""Limit of deferred frames released in one batch; the same as that of a batch from the upstreams."""


class HasFrame(Protocol):
    """A frame and its decoded message, as passed between steps. The message of WAKE is None."""

    @property
    def frame(self) -> Frame: ...
    @property
    def message(self) -> Any: ...


def new_deferred() -> Deferred[Any]:
    """An empty buffer with the limits above."""
    return Deferred(TRUSTED_BYTES, UNTRUSTED_BYTES)


def seq_of(message: Any) -> int:
    """The seq of a repo event, before or after `verify`."""
    return int(message.event.seq if isinstance(message, Verified) else message.seq)


class DeferralStatus:
    """Status of the deferred events, for the flow's source."""

    def __init__(self, flow: str, deferred: Deferred[Any], ring: KeyRing[Any]) -> None:
        self._flow = flow
        self._deferred = deferred
        self._ring = ring

    @property
    def ready(self) -> bool:
        """Whether some events can be released now: the source then emits WAKE."""
        return self._deferred.more or self._ring.ready

    @property
    def waiting(self) -> bool:
        """Whether any event is deferred."""
        return len(self._deferred) > 0

    @property
    def full(self) -> bool:
        """Whether the events that wait for the PLC directory exceed TRUSTED_BYTES. Also sets the gauges."""
        metrics.DEFERRED.labels(self._flow).set(len(self._deferred))
        metrics.DEFERRED_BYTES.labels(self._flow).set(self._deferred.size)
        return self._deferred.full(trusted=True)

    @property
    def problem(self) -> str:
        """Why the PLC directory does not answer, or ''."""
        return self._ring.problem

    def passable(self, upstream: str, seq: int) -> int:
        """The highest position up to `seq` that passes no deferred event."""
        return self._deferred.passable(upstream, seq)


def run_to_end(
    step: Callable[[list[T]], Sequence[Any]], one: T, deferred: Deferred[Any], ring: KeyRing[Any]
) -> list[Any]:
    """The complete output of a step for one frame; blocks until the keys of deferred events arrive. Raises Stopping."""
    out = [*step([one])]
    while len(deferred):
        if not deferred.more:
            ring.wait()
        out += step([])
    return out
