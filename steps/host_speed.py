"""Speed of a host: starts, ends and bytes of its transfers → its slots, its queue limit, the delay of evicted repos.

A slow or hanging host must not fill a worker's queue. Repos that would wait longer than `queue_seconds` are evicted; their delays
are spread at the rate at which the host serves repos. The slower a host, the fewer slots it may hold. A host whose transfer was
ended for being too slow is `slow` until it has served a number of repos; the number doubles with each such transfer.
No clock: `now` in seconds.
"""

from collections import Counter
from dataclasses import dataclass, field
from math import inf

LONGEST_DELAY_SECONDS = 3600.0
SLOW_SECONDS = 30.0
"""The speed is measured over this time at least, and twice this time at most."""
LEAST_BYTES_PER_SECOND = 16 * 1024
_NEWEST_WEIGHT = 0.3
_MOST_STRIKES = 10


@dataclass(slots=True, eq=False)
class Transfer:
    """One getRepo in progress. `confined`: it holds one of the slots that slow hosts share."""

    host: str
    confined: bool = False
    received: int = 0
    began: float | None = None
    _marks: tuple[tuple[float, int], tuple[float, int]] = ((0.0, 0), (0.0, 0))

    def request_sent(self, now: float) -> None:
        """The request is sent. A redirect continues the same transfer."""
        if self.began is None:
            self.began, self._marks = now, ((now, 0), (now, 0))

    def speed(self, now: float) -> float:
        """Recent bytes per second; infinite during the first SLOW_SECONDS."""
        if self.began is None or now < self.began + SLOW_SECONDS:
            return inf
        if now >= self._marks[1][0] + SLOW_SECONDS:
            self._marks = self._marks[1], (now, self.received)
        at, received = self._marks[0]
        return (self.received - received) / (now - at)

    def slow(self, now: float) -> bool:
        """Whether it is below the minimum speed."""
        return self.speed(now) < LEAST_BYTES_PER_SECOND


@dataclass(slots=True)
class HostSpeed:
    """Speed of one host. `most_slots`: that it may hold; `queue_seconds`: how long a repo may wait; `proven`: it has served a repo."""

    most_slots: int
    queue_seconds: float
    proven: bool = False
    _typical: float = 0.0  # moving average of a request's seconds
    _running: Counter[float] = field(default_factory=Counter)  # start times of the requests in progress
    _next_return: float = 0.0
    _strikes: int = 0
    _owed: int = 0  # repos to serve before it is no longer slow

    def request_began(self, now: float) -> None:
        self._running[now] += 1

    def request_ended(self, began: float, now: float) -> None:
        """The request that started at `began` has ended, with or without an answer."""
        self._running[began] -= 1
        if not self._running[began]:
            del self._running[began]
        self._typical += (now - began - self._typical) * (_NEWEST_WEIGHT if self._typical else 1.0)

    def served(self) -> None:
        """It served a repo at the minimum speed or above."""
        self.proven = True
        self._owed = max(0, self._owed - 1)

    def ended_for_speed(self) -> None:
        """A transfer was ended for being too slow."""
        if not self.slow:
            self._strikes = min(_MOST_STRIKES, self._strikes + 1)
        self._owed = 1 << self._strikes

    @property
    def slow(self) -> bool:
        """Whether it may hold only the slots shared by slow hosts."""
        return self._owed > 0

    @property
    def idle(self) -> bool:
        """Whether no request is in progress."""
        return not self._running

    def seconds(self, now: float) -> float:
        """Expected duration of a request: the average, or the age of the oldest in progress if longer; 0 if unknown."""
        return max(self._typical, now - min(self._running, default=now))

    def slots(self, now: float) -> int:
        """Slots that it may hold. Fewer if a request takes longer than `queue_seconds`, or hanging hosts would hold them all."""
        if self.slow:
            return 1
        seconds = self.seconds(now)
        return (
            self.most_slots
            if seconds <= self.queue_seconds
            else max(1, int(self.most_slots * self.queue_seconds / seconds))
        )

    def queue_limit(self, now: float) -> float:
        """How many repos may wait; at least as many as may have slots."""
        seconds = self.seconds(now)
        return max(self.most_slots, self.queue_seconds * self.slots(now) / seconds) if seconds > 0 else inf

    def delay(self, now: float) -> float:
        """Seconds until an evicted repo may return: after the queue, and after those evicted before it."""
        self._next_return = max(self._next_return, now + self.queue_seconds) + self.seconds(now) / self.slots(now)
        # limited, so that a host that recovers is not idle for as long as it was slow
        self._next_return = min(self._next_return, now + LONGEST_DELAY_SECONDS)
        return self._next_return - now
