"""What the simulated servers share: error bodies, page arguments, the request counter with its rate limit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def xrpc_error(error: str, message: str, status: int = 400, headers: dict[str, str] | None = None) -> web.Response:
    """An XRPC error body."""
    return web.json_response({"error": error, "message": message}, status=status, headers=headers)


def page_limit(request: web.Request, default: int = 500, most: int = 1000) -> int:
    """The `limit` argument; HTTP 400 where it is none."""
    text = request.query.get("limit", str(default))
    if not text.isdigit() or not 1 <= int(text) <= most:
        raise web.HTTPBadRequest(
            text=f'{{"error":"InvalidRequest","message":"limit must be 1 to {most}"}}', content_type="application/json"
        )
    return int(text)


class RequestBudget:
    """Counts requests in a sliding window, keeps the greatest count ever seen, and refuses what is above the limit."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.total = 0
        self.refused = 0
        self.most = 0
        self._times: deque[float] = deque()

    def admit(self) -> bool:
        """Count one request; False where it is over the limit. A refused one counts as sent all the same."""
        now = time.monotonic()
        times = self._times
        times.append(now)
        while times[0] < now - self.seconds:
            times.popleft()
        self.total += 1
        self.most = max(self.most, len(times))
        if self.limit and len(times) > self.limit:
            self.refused += 1
            return False
        return True

    def headers(self) -> dict[str, str]:
        """RateLimit-* as a PDS sends them."""
        limit = self.limit or 3000
        oldest = self._times[0] if self._times else time.monotonic()
        reset = int(time.time() + max(0.0, oldest + self.seconds - time.monotonic())) + 1
        return {
            "RateLimit-Limit": str(limit),
            "RateLimit-Remaining": str(max(0, limit - len(self._times))),
            "RateLimit-Reset": str(reset),
            "RateLimit-Policy": f"{limit};w={int(self.seconds)}",
        }

    def retry_after(self) -> int:
        """Whole seconds until a request fits again."""
        over = len(self._times) - self.limit
        return max(1, int(self._times[max(0, over)] + self.seconds - time.monotonic()) + 1)

    def snapshot(self) -> dict[str, Any]:
        """The counters."""
        return {"total": self.total, "refused": self.refused, "max_in_window": self.most, "limit": self.limit}

    def reset(self) -> None:
        """Forget all requests."""
        self._times.clear()
        self.total = self.refused = self.most = 0


def budget_middleware(budget: RequestBudget) -> Any:
    """aiohttp middleware that counts every request and answers 429 over the limit."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not budget.admit():
            headers = {**budget.headers(), "Retry-After": str(budget.retry_after())}
            return xrpc_error("RateLimitExceeded", "Rate Limit Exceeded", 429, headers)
        return await handler(request)

    return middleware
