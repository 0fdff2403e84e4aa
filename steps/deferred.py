"""Events deferred beside a stream: their order per key, their bytes, and the positions that they hold back. Pure state.

A key is deferred from its first event that cannot be checked yet. Later events of the key queue behind it; other keys pass.
The cursor of an upstream may not pass a deferred event that the upstream sent.

Two limits in bytes apply: one for events that wait for the PLC directory (trusted), one for events that wait for other hosts
(untrusted), so that untrusted hosts cannot use up the memory of the directory's events.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

X = TypeVar("X")

SIZE_FACTOR = 3
"""Bytes of memory per byte of a frame: the frame, its blocks, and the objects made of it."""
SIZE_EACH = 2048
"""Bytes of memory per event, however small its frame."""


@dataclass(slots=True, eq=False)
class DeferredEvent(Generic[X]):
    """A deferred event. `seqs`: upstream → the lowest seq under which the upstream sent it."""

    item: X
    frame_bytes: int
    trusted: bool
    mark: Hashable
    seqs: dict[str, int]

    @property
    def size(self) -> int:
        return SIZE_EACH + SIZE_FACTOR * self.frame_bytes


@dataclass(slots=True)
class Deferred(Generic[X]):
    """See the module. The caller checks the limits with `full` before it adds. `more`: some events can be checked now."""

    trusted_limit: int
    untrusted_limit: int
    more: bool = False
    _queues: dict[str, list[DeferredEvent[X]]] = field(default_factory=dict)
    _marks: dict[Hashable, DeferredEvent[X]] = field(default_factory=dict)
    _bytes: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    _events: int = 0

    def __contains__(self, key: str) -> bool:
        return key in self._queues

    def __len__(self) -> int:
        return self._events

    @property
    def size(self) -> int:
        """Bytes of all events."""
        return sum(self._bytes.values())

    def full(self, *, trusted: bool) -> bool:
        """Whether the events of this kind have reached their limit."""
        return self._bytes[trusted] >= (self.trusted_limit if trusted else self.untrusted_limit)

    def count(self, key: str) -> int:
        """How many events of a key are deferred."""
        return len(self._queues.get(key, ()))

    def add(
        self, key: str, item: X, frame_bytes: int, *, upstream: str, seq: int, trusted: bool, mark: Hashable = None
    ) -> None:
        """Append an event to the queue of its key. `mark`: equal for copies of one event from different upstreams."""
        entry = DeferredEvent(item, frame_bytes, trusted, mark, {upstream: seq})
        self._queues.setdefault(key, []).append(entry)
        self._count(entry, 1)

    def repeat(self, mark: Hashable, upstream: str, seq: int) -> None:
        """A copy of an event was dropped. If the event is deferred, it also holds back the cursor of this upstream."""
        entry = self._marks.get(mark)
        if entry is not None:
            entry.seqs[upstream] = min(seq, entry.seqs.get(upstream, seq))

    def take(self, key: str) -> list[X]:
        """Remove all events of a key; returns them in order."""
        return [entry.item for entry in self._take(key)]

    def release(self, key: str, room: int, accept: Callable[[X], bool]) -> int:
        """Remove the events of a key in order, until `accept` returns False or `room` bytes of frames are used up.

        The events from there on stay deferred. Returns the room that is left, below 0 if the last event exceeded it.
        """
        entries = self._take(key)
        for at, entry in enumerate(entries):
            if room <= 0 or not accept(entry.item):
                self._queues[key] = entries[at:]
                for left in entries[at:]:
                    self._count(left, 1)
                break
            room -= entry.frame_bytes
        return room

    def passable(self, upstream: str, seq: int) -> int:
        """The highest position up to `seq` that passes no deferred event of the upstream."""
        entries = (entry for queue in self._queues.values() for entry in queue)
        return min([seq, *(entry.seqs[upstream] - 1 for entry in entries if upstream in entry.seqs)])

    def _take(self, key: str) -> list[DeferredEvent[X]]:
        entries = self._queues.pop(key, [])
        for entry in entries:
            self._count(entry, -1)
        return entries

    def _count(self, entry: DeferredEvent[X], events: int) -> None:
        self._events += events
        self._bytes[entry.trusted] += events * entry.size
        if entry.mark is None:
            return
        if events > 0:
            self._marks[entry.mark] = entry
        else:
            self._marks.pop(entry.mark, None)
