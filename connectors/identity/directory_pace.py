"""The rate of requests to the PLC directory: a limit per second, none during a cooldown, and fewer while it fails.

Call `await pace.wait()` before each request, and `throttled`, `answered` or `failed` after it. Requests queued when the directory
answers 429 wait out the cooldown, then go one at a time. For one event loop; `resting` may be read from any thread.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from connectors.runtime import metrics
from steps.backoff import backoff_seconds

SHORTEST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 300.0
LONGEST_UNNAMED_SECONDS = 60.0  # maximum cooldown without a Retry-After
LOG_AGAIN_SECONDS = 300.0
FAILURES_BORNE = 20  # in a row; beyond it the interval grows up to LONGEST_BETWEEN_SECONDS
LONGEST_BETWEEN_SECONDS = 1.0

log = logging.getLogger("identities")


class DirectoryPace:
    """See the module. `per_second`: maximum requests per second. All times are of `clock`."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._between = 1 / per_second
        self._next = 0.0
        self._rest_until = 0.0
        self._rests = 0  # cooldowns in a row, without an answer between them
        self._logged_at: float | None = None
        self._failures = 0  # in a row

    @property
    def resting(self) -> bool:
        return self._clock() < self._rest_until

    async def wait(self) -> None:
        """Wait until the next request may be sent."""
        while True:
            now = self._clock()
            at = max(now, self._next, self._rest_until)
            self._next = at + self._interval()
            if at > now:
                await asyncio.sleep(at - now)
            if not self.resting:  # a cooldown may have begun during the sleep
                return

    def throttled(self, wait: float | None) -> None:
        """The directory answered with a rate limit: begin a cooldown. `wait`: its Retry-After in seconds, if any."""
        metrics.DIRECTORY_THROTTLED.inc()
        now = self._clock()
        if not self.resting:  # otherwise the response belongs to the same burst
            self._rests += 1
        least = backoff_seconds(max(self._rests, 1), SHORTEST_REST_SECONDS, LONGEST_UNNAMED_SECONDS)
        rest = min(max(wait or 0.0, least), LONGEST_REST_SECONDS)
        self._rest_until = max(self._rest_until, now + rest)
        if self._logged_at is None or now > self._logged_at + LOG_AGAIN_SECONDS:
            self._logged_at = now
            fields = {"rest_seconds": round(rest, 1), "our_limit_per_second": round(1 / self._between, 3)}
            log.warning(
                "the PLC directory limits our requests: identity lookups are slower; none is lost", extra=fields
            )

    def answered(self) -> None:
        """Record a response, with or without a document."""
        self._rests = self._failures = 0

    def failed(self) -> None:
        """Record a server error or a request without a response."""
        self._failures += 1

    def _interval(self) -> float:
        beyond = self._failures - FAILURES_BORNE
        if beyond <= 0:
            return self._between
        slower: float = self._between * 2.0 ** min(beyond / FAILURES_BORNE, 60.0)
        return max(self._between, min(slower, LONGEST_BETWEEN_SECONDS))
