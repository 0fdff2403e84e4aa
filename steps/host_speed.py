"""How fast a host answers: (requests began, ended, bytes received) → how many at once, how many may wait, when others come back.

A host that is slow, or hangs, must not fill a worker's memory with repos that wait for it. Repos that would wait longer than
`line_seconds` are deferred, each to a moment of its own, at the pace at which the host gets on; and the slower the host, the
fewer permits it keeps from the others. A host whose transfer was ended for being slow is `slow` until it has answered well
twice as often as after the time before. No clock: `now` in seconds.
"""

from collections import Counter
from dataclasses import dataclass, field
from math import inf

LONGEST_AWAY_SECONDS = 3600.0
SLOW_SECONDS = 30.0
"""A transfer is measured over this time at least, and twice this time at most."""
LEAST_BYTES_PER_SECOND = 16 * 1024
_NEWEST_WEIGHT = 0.3
_MOST_STRIKES = 10


@dataclass(slots=True, eq=False)
class Transfer:
    """One getRepo under way. `confined`: it has one of the permits that slow hosts share."""

    host: str
    confined: bool = False
    received: int = 0
    began: float | None = None
    _marks: tuple[tuple[float, int], tuple[float, int]] = ((0.0, 0), (0.0, 0))

    def asked(self, now: float) -> None:
        """The request goes out; a redirect goes on with the same transfer."""
        if self.began is None:
            self.began, self._marks = now, ((now, 0), (now, 0))

    def speed(self, now: float) -> float:
        """Bytes a second lately; more than any host has where it is too early to tell."""
        if self.began is None or now < self.began + SLOW_SECONDS:
            return inf
        if now >= self._marks[1][0] + SLOW_SECONDS:
            self._marks = self._marks[1], (now, self.received)
        at, received = self._marks[0]
        return (self.received - received) / (now - at)

    def slow(self, now: float) -> bool:
        """Whether it is below the least speed."""
        return self.speed(now) < LEAST_BYTES_PER_SECOND


@dataclass(slots=True)
class HostPace:
    """What is known of one host that may have `places` requests at once. `proven`: it has served a repo."""

    places: int
    line_seconds: float
    proven: bool = False
    _typical: float = 0.0  # seconds that a request took lately
    _running: Counter[float] = field(default_factory=Counter)  # when the requests under way began
    _next_return: float = 0.0
    _strikes: int = 0
    _owed: int = 0  # repos to be served well before it is as other hosts again

    def began(self, now: float) -> None:
        """A request goes out."""
        self._running[now] += 1

    def ended(self, began: float, now: float) -> None:
        """The request that began then has its answer, or none."""
        self._running[began] -= 1
        if not self._running[began]:
            del self._running[began]
        self._typical += (now - began - self._typical) * (_NEWEST_WEIGHT if self._typical else 1.0)

    def served(self) -> None:
        """It served a repo, and not below the least speed."""
        self.proven = True
        self._owed = max(0, self._owed - 1)

    def struck(self) -> None:
        """A transfer was ended because it was slow."""
        if not self.slow:
            self._strikes = min(_MOST_STRIKES, self._strikes + 1)
        self._owed = 1 << self._strikes

    @property
    def slow(self) -> bool:
        """Whether it shares the few permits of slow hosts."""
        return self._owed > 0

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._running

    def seconds(self, now: float) -> float:
        """What a request takes: as lately, or as long as the oldest has been waiting by now; 0 where nothing is known."""
        return max(self._typical, now - min(self._running, default=now))

    def share(self, now: float) -> int:
        """Permits that it may have: fewer where a request takes longer than a line may, or some hosts that hang had all of them."""
        if self.slow:
            return 1
        seconds = self.seconds(now)
        return self.places if seconds <= self.line_seconds else max(1, int(self.places * self.line_seconds / seconds))

    def line(self, now: float) -> float:
        """How many may wait; at least as many as have permits."""
        seconds = self.seconds(now)
        return max(self.places, self.line_seconds * self.share(now) / seconds) if seconds > 0 else inf

    def away(self, now: float) -> float:
        """Seconds after which one that is deferred may come back: behind the line, and behind those deferred before."""
        self._next_return = max(self._next_return, now + self.line_seconds) + self.seconds(now) / self.share(now)
        # a host that answers again must not stay empty for as long as it was slow
        self._next_return = min(self._next_return, now + LONGEST_AWAY_SECONDS)
        return self._next_return - now
