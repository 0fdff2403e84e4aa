"""Shared by the simulated servers: error bodies, page arguments, and the request counter with its rate limit."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

IN_FLIGHT_SECONDS = 5.0  # requests sent before the client received a 429 arrive within this time


def xrpc_error(error: str, message: str, status: int = 400, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": error, "message": message}, status=status, headers=headers)


def page_limit(request: web.Request, default: int = 500, most: int = 1000) -> int:
    """The `limit` argument. Raises HTTPBadRequest (400) unless it is a number from 1 to `most`."""
    text = request.query.get("limit", str(default))
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise web.HTTPBadRequest(
            text=f'{{"error":"InvalidRequest","message":"limit must be 1 to {most}"}}', content_type="application/json"
        )
    return int(text)


def _now() -> float:
    """The event loop's time, in which tests may let hours pass."""
    return asyncio.get_running_loop().time()


class RequestBudget:
    """Counts requests in a sliding window of `seconds` and rejects those above `limit` (0 = no limit).

    The limit applies to admitted requests. `total` and `most` (the maximum in one window) include rejected requests. `early`
    counts requests that ignored the Retry-After of a 429.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.total = 0
        self.refused = 0
        self.most = 0
        self.early = 0
        self._off = (0.0, 0.0)
        self._sent: deque[float] = deque()
        self._admitted: deque[float] = deque()

    def admit(self) -> bool:
        """Count one request. False if it is above the limit."""
        now = _now()
        self._sent.append(now)
        for times in (self._sent, self._admitted):
            while times and times[0] < now - self.seconds:
                times.popleft()
        self.total += 1
        self.early += self._off[0] < now < self._off[1]
        self.most = max(self.most, len(self._sent))
        if self.limit and len(self._admitted) >= self.limit:
            self.refused += 1
            return False
        self._admitted.append(now)
        return True

    def sent_retry_after(self, seconds: float) -> None:
        """Count requests as early until `seconds` have passed, after a grace period for requests in flight."""
        now = _now()
        self._off = (now + IN_FLIGHT_SECONDS, now + seconds)

    def headers(self) -> dict[str, str]:
        """The RateLimit-* headers of a PDS; none without a limit."""
        if not self.limit:
            return {}
        limit = self.limit
        reset = int(time.time() + self._until_free()) + 1
        return {
            "RateLimit-Limit": str(limit),
            "RateLimit-Remaining": str(max(0, limit - len(self._admitted))),
            "RateLimit-Reset": str(reset),
            "RateLimit-Policy": f"{limit};w={int(self.seconds)}",
        }

    def retry_after(self) -> int:
        """Whole seconds until another request is admitted."""
        return int(self._until_free()) + 1

    def _until_free(self) -> float:
        oldest = self._admitted[0] if self._admitted else _now()
        return max(0.0, oldest + self.seconds - _now())

    def snapshot(self) -> dict[str, Any]:
        counts = {"total": self.total, "refused": self.refused, "early": self.early}
        return counts | {"max_in_window": self.most, "limit": self.limit}

    def reset(self) -> None:
        """Set all counts to zero."""
        self._sent.clear()
        self._admitted.clear()
        self.total = self.refused = self.most = self.early = 0


def budget_middleware(budget: RequestBudget) -> Any:
    """aiohttp middleware that counts every request and answers 429 above the limit."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not budget.admit():
            headers = {**budget.headers(), "Retry-After": str(budget.retry_after())}
            return xrpc_error("RateLimitExceeded", "Rate Limit Exceeded", 429, headers)
        return await handler(request)

    return middleware
