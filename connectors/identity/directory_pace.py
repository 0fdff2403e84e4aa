"""The pace of requests to the PLC directory: so many a second, and none while it wants to be left alone.

`await pace.turn()` before each request, `throttled` or `answered` after it. Whatever waits for its turn when the directory
asks for a rest waits for the end of that rest, and goes on one after another. For one event loop; `resting` may be read
from any thread.
"""

import asyncio
import logging
import time

from connectors.runtime import metrics
from steps.backoff import backoff_seconds

SHORTEST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 300.0
LONGEST_UNNAMED_SECONDS = 60.0  # of a directory that names no time, and has answered nothing since its last rest
SAY_AGAIN_SECONDS = 300.0
FAILURES_BORNE = 20  # in a row, before requests go out ever more rarely, down to one in LONGEST_BETWEEN_SECONDS
LONGEST_BETWEEN_SECONDS = 1.0

log = logging.getLogger("identities")


class Pace:
    """See the module. `per_second`: requests, at most."""

    def __init__(self, per_second: float) -> None:
        self._between = 1 / per_second
        self._next = 0.0  # all moments are time.monotonic
        self._rest_until = 0.0
        self._rests = 0  # one after another, with no answer between them
        self._said_at: float | None = None
        self._failures = 0

    @property
    def resting(self) -> bool:
        """Whether the directory wants to be left alone now."""
        return time.monotonic() < self._rest_until

    async def turn(self) -> None:
        """Wait for this request's moment."""
        while True:
            now = time.monotonic()
            at = max(now, self._next, self._rest_until)
            self._next = at + self._interval()
            if at > now:
                await asyncio.sleep(at - now)
            if not self.resting:  # else a rest has begun meanwhile
                return

    def throttled(self, wait: float | None) -> None:
        """The directory refused a request for its limit; `wait`: the seconds that it named, if it did."""
        metrics.DIRECTORY_THROTTLED.inc()
        now = time.monotonic()
        if not self.resting:  # else it is one more of the same burst
            self._rests += 1
        least = backoff_seconds(max(self._rests, 1), SHORTEST_REST_SECONDS, LONGEST_UNNAMED_SECONDS)
        rest = min(max(wait or 0.0, least), LONGEST_REST_SECONDS)
        self._rest_until = max(self._rest_until, now + rest)
        if self._said_at is None or now > self._said_at + SAY_AGAIN_SECONDS:
            self._said_at = now
            fields = {"rest_seconds": round(rest, 1), "our_limit_per_second": round(1 / self._between, 3)}
            log.warning(
                "the PLC directory limits our requests: what needs it is slower, nothing is refused", extra=fields
            )

    def answered(self) -> None:
        """It had a word for a request."""
        self._rests = self._failures = 0

    def failed(self) -> None:
        """It did not answer, or with an error of its own."""
        self._failures += 1

    def _interval(self) -> float:
        beyond = self._failures - FAILURES_BORNE
        if beyond <= 0:
            return self._between
        slower: float = self._between * 2.0 ** min(beyond / FAILURES_BORNE, 60.0)
        return max(self._between, min(slower, LONGEST_BETWEEN_SECONDS))
