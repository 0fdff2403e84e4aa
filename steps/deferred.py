"""Events that wait beside a stream, in order per key: how many bytes they are, and which positions they hold back. Pure state.

A key is deferred from its first event on that cannot be judged yet; what follows of the key goes behind it, other keys pass.
No cursor of an upstream may pass a deferred event that it brought. There are two limits in bytes: one for events that wait for
the PLC directory, one for events that wait for untrusted hosts, so that the latter cannot use up the room of the former.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

X = TypeVar("X")

SIZE_FACTOR = 3
"""Bytes of memory for each byte of a frame: the frame, its blocks, and the objects made of it."""
SIZE_EACH = 2048
"""Bytes of memory for each event, however small its frame is."""


@dataclass(slots=True, eq=False)
class Entry(Generic[X]):
    """A deferred event. `seqs`: upstream → the lowest seq under which it brought the event."""

    item: X
    size: int
    trusted: bool
    mark: Hashable
    seqs: dict[str, int]


@dataclass(slots=True)
class Deferred(Generic[X]):
    """See the module. Limits are checked by the caller with `full`, before it adds. `more`: some can be judged at once."""

    trusted_limit: int
    untrusted_limit: int
    more: bool = False
    _queues: dict[str, list[Entry[X]]] = field(default_factory=dict)
    _marks: dict[Hashable, Entry[X]] = field(default_factory=dict)
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
        """Whether this kind has used up its bytes."""
        return self._bytes[trusted] >= (self.trusted_limit if trusted else self.untrusted_limit)

    def add(
        self, key: str, item: X, frame_bytes: int, *, upstream: str, seq: int, trusted: bool, mark: Hashable = None
    ) -> None:
        """Defer an event behind those of its key. `mark`: what makes another upstream's event the same one."""
        entry = Entry(item, SIZE_EACH + SIZE_FACTOR * frame_bytes, trusted, mark, {upstream: seq})
        self._queues.setdefault(key, []).append(entry)
        self._count(entry)

    def repeat(self, mark: Hashable, upstream: str, seq: int) -> None:
        """Another copy of an event was dropped. If the event is deferred, this upstream's cursor may not pass it either."""
        entry = self._marks.get(mark)
        if entry is not None:
            entry.seqs[upstream] = min(seq, entry.seqs.get(upstream, seq))

    def take(self, key: str) -> list[Entry[X]]:
        """The events of a key in order; they are not deferred any more."""
        entries = self._queues.pop(key, [])
        self._events -= len(entries)
        for entry in entries:
            self._bytes[entry.trusted] -= entry.size
            if entry.mark is not None:
                self._marks.pop(entry.mark, None)
        return entries

    def put_back(self, key: str, entries: Sequence[Entry[X]]) -> None:
        """Defer the rest of what was taken, in its order."""
        self._queues[key] = list(entries)
        for entry in entries:
            self._count(entry)

    def passable(self, upstream: str, seq: int) -> int:
        """The highest position up to `seq` that passes no deferred event of the upstream."""
        entries = (entry for queue in self._queues.values() for entry in queue)
        return min([seq, *(entry.seqs[upstream] - 1 for entry in entries if upstream in entry.seqs)])

    def _count(self, entry: Entry[X]) -> None:
        self._events += 1
        self._bytes[entry.trusted] += entry.size
        if entry.mark is not None:
            self._marks[entry.mark] = entry
