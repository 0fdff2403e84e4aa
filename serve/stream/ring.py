"""The newest events in memory, shared by all clients: `Ring`, bounded in bytes. Used in the event loop.

A client has a position (the number of events before it since the start). It waits for the next events with `changed`. A client
whose position has left the ring reads the log itself, or was too slow.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

from serve.stream.events import StreamEvent
from steps.sequence import LogMark

RING_BYTES = 128 * 1024 * 1024
TRIM_EVENTS = 1000
"""Events are removed by this many, as that moves the others in memory."""


class Ring:
    """Events in the order of `seq`. `newest`: the mark after the last one; None until the log is read."""

    def __init__(self, most_bytes: int = RING_BYTES) -> None:
        self._most_bytes = most_bytes
        self._events: list[StreamEvent] = []
        self._bytes = 0
        self._removed = 0
        self._changed = asyncio.Event()
        self.newest: LogMark | None = None
        self.start_seq = 0
        """Events from this number on are here, or were never there."""
        self.start_time = 0

    @property
    def end(self) -> int:
        """The position after the newest event."""
        return self._removed + len(self._events)

    def extend(self, events: Sequence[StreamEvent], newest: LogMark) -> None:
        """Append events, remove the oldest beyond the limit, wake all clients."""
        if self.newest is None:
            self.start_seq, self.start_time = newest.seq, newest.time
        self._events += events
        self._bytes += sum(event.size for event in events)
        self.newest = newest
        self._trim()
        self._changed.set()
        self._changed = asyncio.Event()

    def clear(self) -> None:
        """The stream does not go on where it ended: clients read the log, or are closed and come back with their cursor."""
        self._removed = self.end + 1
        self._events, self._bytes, self.newest = [], 0, None
        self.wake()

    def _trim(self) -> None:
        count = 0
        while self._bytes > self._most_bytes and count < len(self._events) - 1:
            self._bytes -= self._events[count].size
            count += 1
            if count % TRIM_EVENTS == 0 and self._bytes <= self._most_bytes:
                break
        if count:
            del self._events[:count]
            self._removed += count
            self.start_seq, self.start_time = self._events[0].seq, self._events[0].time

    def from_position(self, position: int, limit: int) -> list[StreamEvent] | None:
        """Up to `limit` events from a position on; None if it has left the ring."""
        at = position - self._removed
        return None if at < 0 else self._events[at : at + limit]

    def position_of(self, seq: int) -> int | None:
        """The position of the first event with this number or a later one; None if earlier ones are no longer here."""
        if self.newest is None or seq < self.start_seq:
            return None
        return self._removed + bisect_left(self._events, seq, key=attrgetter("seq"))

    def meeting(self, seq: int) -> int | None:
        """`position_of`, for a client that has had all events before this number: None too while the ring lacks some of them."""
        return None if self.newest is None or self.newest.seq < seq else self.position_of(seq)

    def position_at(self, time: int) -> int | None:
        """The position of the first event of this time or a later one; None if earlier ones are no longer here."""
        if self.newest is None or time < self.start_time:
            return None
        return self._removed + bisect_left(self._events, time, key=attrgetter("time"))

    async def changed(self, seconds: float) -> None:
        """Wait for the next `extend` or `wake`, at most `seconds`."""
        event = self._changed
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    def wake(self) -> None:
        """Wake all clients."""
        self._changed.set()
        self._changed = asyncio.Event()
