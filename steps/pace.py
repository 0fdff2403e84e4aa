"""How fast a host answers: (when requests began and ended) → how many at once, how many may wait, and when the others come back.

A host that is slow, or hangs, must not fill a worker's memory with repos that wait for it. Who would wait longer than
`line_seconds` is sent away, each to a moment of its own, at the pace at which the host gets on; and the slower the host, the
fewer places it keeps from the others. No clock: `now` in seconds.
"""

from collections import Counter
from dataclasses import dataclass, field
from math import inf

LONGEST_AWAY_SECONDS = 3600.0
_NEWEST_WEIGHT = 0.3


@dataclass(slots=True)
class HostPace:
    """What is known of one host that may have `places` requests at once."""

    places: int
    line_seconds: float
    _typical: float = 0.0  # seconds that a request took lately
    _running: Counter[float] = field(default_factory=Counter)  # when the requests under way began
    _next_return: float = 0.0

    def began(self, now: float) -> None:
        """A request goes out."""
        self._running[now] += 1

    def ended(self, began: float, now: float) -> None:
        """The request that began then has its answer, or none."""
        self._running[began] -= 1
        if not self._running[began]:
            del self._running[began]
        self._typical += (now - began - self._typical) * (_NEWEST_WEIGHT if self._typical else 1.0)

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._running

    def seconds(self, now: float) -> float:
        """What a request takes: as lately, or as long as the oldest has been waiting by now; 0 where nothing is known."""
        return max(self._typical, now - min(self._running, default=now))

    def share(self, now: float) -> int:
        """Places that it may have: fewer where a request takes longer than a line may, or some hosts that hang had all of them."""
        seconds = self.seconds(now)
        return self.places if seconds <= self.line_seconds else max(1, int(self.places * self.line_seconds / seconds))

    def line(self, now: float) -> float:
        """How many may wait; at least as many as have places."""
        seconds = self.seconds(now)
        return max(self.places, self.line_seconds * self.share(now) / seconds) if seconds > 0 else inf

    def away(self, now: float) -> float:
        """Seconds after which one that is sent away may come back: behind the line, and behind those sent away before."""
        self._next_return = max(self._next_return, now + self.line_seconds) + self.seconds(now) / self.share(now)
        # a host that answers again must not stay empty for as long as it was slow
        self._next_return = min(self._next_return, now + LONGEST_AWAY_SECONDS)
        return self._next_return - now
