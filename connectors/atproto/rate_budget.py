"""Rate limits per PDS: requests per window, shared by all workers through `sluice.host`, and concurrent requests per worker.

`async with HostBudget.request(host)` waits for a permit and a token, or raises HostPaused. Tokens are leased in small batches, so
that most requests need no database access; unused tokens expire. Burst, refill and lease lifetime ensure that no sliding window
of the host contains more than `pds_requests` of all workers. The host's RateLimit headers can only lower that limit.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from connectors.postgres.connection import AsyncPool
from connectors.runtime import metrics
from schemas.settings import Settings
from schemas.sql import queries
from steps.retry import LONGEST_PAUSE, FailureReason

BURST_SHARE = 0.1
LEASE_SHARE = 1 / 30  # lifetime of leased tokens, as a share of the window; requests may reach the host as much later
SHORTEST_LEASE = 0.5
LARGEST_LEASE = 32
LONGEST_WAIT_SECONDS = 60.0
KEPT_HOSTS = 20_000
CONNECTIONS = 2
LOWER_EVERY_SECONDS = 1.0
PAUSE_CHECK_SECONDS = 5.0  # how soon a worker notices that an operator ended a pause


class HostPaused(Exception):
    """No request to the host for `seconds`. `reason`: HOST_PAUSED (the host asked for it) or HOST_BUSY (no budget left)."""

    def __init__(self, host: str, seconds: float, reason: FailureReason, why: str) -> None:
        super().__init__(f"{host}: {why}")
        self.seconds = seconds
        self.reason = reason


@dataclass(slots=True)
class _Host:
    """This worker's state of a host. `users`: running and waiting requests. Times are of the budget's clock."""

    permits: asyncio.Semaphore
    users: int = 0

    left: int = 0
    expires: float = 0.0
    want: int = 1
    waiting: int = 0
    paused_until: float = 0.0
    pause_reason: str = ""
    request_limit: int | None = None
    checked: float = 0.0  # when the pause was last read from the database
    pauses: int = 0  # in a row, since the last served repo
    lowered_at: float = 0.0
    failing: bool = False
    order: asyncio.Lock = field(default_factory=asyncio.Lock)


class HostBudget:
    """One per process, used in one event loop. Close it in that loop. Hosts are origins: `https://host[:port]`."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._sql = queries("budget")
        self._hosts: dict[str, _Host] = {}
        self._pool = AsyncPool(settings.database, "sluice budget", CONNECTIONS)
        for figure, gauge in metrics.POOL.items():  # evaluated at each scrape
            gauge.set_function(lambda figure=figure: float(self._pool.stats().get(figure, 0)))  # type: ignore[misc]  # bound now
        window = settings.tuning.host_window_seconds
        self._lease_seconds = max(SHORTEST_LEASE, window * LEASE_SHARE)
        self._span = window + 2 * self._lease_seconds

    @asynccontextmanager
    async def request(self, host: str) -> AsyncIterator[None]:
        """One request: one of `pds_concurrency` permits, then a token. Raises HostPaused."""
        state = self._state(host)
        state.users += 1
        try:
            async with state.permits:
                await self.acquire(host)
                yield
        finally:
            state.users -= 1

    async def acquire(self, host: str) -> None:
        """Wait for one token and take it. Raises HostPaused during a pause, or if the wait would be too long."""
        state = self._state(host)
        state.waiting += 1
        try:
            async with state.order:  # FIFO
                while True:
                    now = self._clock()
                    if state.paused_until > now and now < state.checked + PAUSE_CHECK_SECONDS:
                        raise HostPaused(host, state.paused_until - now, FailureReason.HOST_PAUSED, state.pause_reason)
                    if state.left > 0 and state.expires > now:
                        state.left -= 1
                        return
                    await self._lease(host, state, now)
        finally:
            state.waiting -= 1

    async def pause(self, host: str, seconds: float, reason: str) -> None:
        """Pause a host for all workers for at least `seconds`. With pauses in a row the minimum doubles, up to an hour."""
        state, now = self._state(host), self._clock()
        if state.paused_until <= now:  # else this answer belongs to the same burst
            state.pauses += 1
        seconds = max(seconds, min(2.0 ** min(state.pauses - 1, 20), LONGEST_PAUSE))
        state.paused_until, state.checked = max(state.paused_until, now + seconds), now
        state.pause_reason, state.left = reason, 0
        await self._execute("pause", host=host, seconds=seconds, reason=reason)

    async def apply_headers(self, host: str, headers: Mapping[str, str]) -> None:
        """Lower the budget according to the headers RateLimit-Limit, -Policy and -Remaining."""
        allowed = requests_allowed(headers, self._settings.tuning.host_window_seconds)
        if allowed is None:
            return
        state, now = self._state(host), self._clock()
        limit = min(allowed, self._settings.pds_requests)
        remaining = _number(headers.get("RateLimit-Remaining"))
        scarce = (
            remaining is not None and remaining < limit * BURST_SHARE and now > state.lowered_at + LOWER_EVERY_SECONDS
        )
        if limit == (state.request_limit or self._settings.pds_requests) and not scarce:
            return
        state.request_limit = limit
        if scarce and remaining is not None:
            state.lowered_at = now
            state.left = min(state.left, remaining)
        await self._execute("lower", host=host, request_limit=limit, remaining=remaining if scarce else limit)

    async def record_failure(self, host: str, error: str) -> None:
        """Record that a request failed, for operators."""
        self._state(host).failing = True
        await self._execute("failed", host=host, error=error[:500])

    async def record_served(self, host: str) -> None:
        """Record that the host has served a repo."""
        state = self._state(host)
        state.pauses = 0
        if state.failing:
            state.failing = False
            await self._execute("answered", host=host)

    async def close(self) -> None:
        await self._pool.close()

    async def _lease(self, host: str, state: _Host, now: float) -> None:
        """Lease tokens into `state`, or sleep until some should be available, or raise HostPaused."""
        # the last lease was used up in time: lease more at once
        state.want = min(LARGEST_LEASE, state.want * 2) if state.expires > now else 1
        checked = state.checked
        row = await self._execute("lease", host=host, want=max(state.want, state.waiting))
        if state.checked != checked:  # `pause` ran meanwhile
            return
        leased, tokens, paused, why, limit = row or (0, 0.0, 0.0, None, 1)
        state.checked = now
        state.paused_until = now + paused if paused > 0 else 0.0
        if state.request_limit is not None:
            state.request_limit = limit  # an operator may have reset it
        if paused > 0:
            state.pause_reason = why or "paused"
            return
        if leased:
            state.left, state.expires = leased, now + self._lease_seconds
            return
        rate = max(limit - max(1, limit * BURST_SHARE), 0.99) / self._span
        ahead = (state.waiting - tokens) / rate
        if ahead > LONGEST_WAIT_SECONDS and state.waiting > 1:
            raise HostPaused(host, ahead, FailureReason.HOST_BUSY, f"the budget of {limit} requests is used up")
        await asyncio.sleep(min(LONGEST_WAIT_SECONDS, max(0.05, (1 - tokens) / rate)))

    def _state(self, host: str) -> _Host:
        state = self._hosts.get(host)
        if state is None:
            if len(self._hosts) >= KEPT_HOSTS:
                now = self._clock()
                idle = [
                    n for n, one in self._hosts.items() if not (one.waiting or one.users) and one.paused_until < now
                ]
                for name in idle:
                    del self._hosts[name]
            state = self._hosts[host] = _Host(asyncio.Semaphore(self._settings.pds_concurrency))
        return state

    async def _execute(self, name: str, **values: Any) -> tuple[Any, ...] | None:
        values |= {"requests": self._settings.pds_requests, "span": self._span, "burst_share": BURST_SHARE}
        rows = await self._pool.fetch(self._sql[name], values)
        return rows[0] if rows else None


def requests_allowed(headers: Mapping[str, str], window_seconds: float) -> int | None:
    """Requests per `window_seconds` that the headers allow; None if they are missing or invalid.

    `RateLimit-Policy: 3000;w=300` names the host's window; `RateLimit-Limit` alone is taken as per `window_seconds`.
    """
    limit = _number(headers.get("RateLimit-Limit"))
    if limit is None:
        return None
    for part in headers.get("RateLimit-Policy", "").split(";")[1:]:
        name, _, value = part.strip().partition("=")
        seconds = _number(value) if name == "w" else None
        if seconds and seconds > window_seconds:  # a shorter window is respected by pauses
            return max(1, int(limit * window_seconds / seconds))
    return max(1, limit)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 12 else None
