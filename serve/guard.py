"""Who may ask how often, and how errors are answered.

With `SLUICE_SERVE_TOKEN` every request needs `Authorization: Bearer TOKEN`. Each address has a token bucket of requests
(`serve_address_requests` a second); connections are bounded by `connectors/http/server.py`. An error is `{"error", "message"}`, as
XRPC defines it.
"""

import hmac
import logging
import time

import psycopg
from aiohttp import web
from cachetools import TTLCache
from psycopg_pool import PoolTimeout

from connectors.http.server import Handler
from connectors.kafka.log import LogUnavailable
from connectors.postgres.pooled_calls import TooManyCalls
from connectors.runtime import metrics
from schemas.settings import Settings

BURST_SECONDS = 10.0
"""A silent address may send the requests of this time at once."""
ADDRESSES = 20_000
"""Addresses whose requests are counted; beyond it the ones seen least recently are forgotten."""
HEADERS = {"Access-Control-Allow-Origin": "*"}
UNAVAILABLE = (psycopg.Error, PoolTimeout, LogUnavailable)

log = logging.getLogger("serve")


class XrpcError(Exception):
    """An error answer. `name`: the lexicon's name of the error."""

    def __init__(self, name: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.name = name
        self.status = status

    def response(self) -> web.Response:
        """The answer."""
        return web.json_response({"error": self.name, "message": str(self)}, status=self.status, headers=HEADERS)


class RequestRate:
    """Token buckets of addresses."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = per_second * BURST_SECONDS
        self._buckets: TTLCache[str, tuple[float, float]] = TTLCache(ADDRESSES, 2 * BURST_SECONDS)

    def allow(self, address: str, now: float) -> bool:
        """Take a token of the address. `now`: monotonic seconds."""
        tokens, then = self._buckets.get(address, (self._most, now))
        tokens = min(self._most, tokens + (now - then) * self._per_second)
        self._buckets[address] = max(0.0, tokens - 1.0), now
        return tokens >= 1.0


class ClientGuard:
    """The checks of every request."""

    def __init__(self, settings: Settings) -> None:
        self._token = settings.serve_token.encode()
        self._rate = RequestRate(settings.tuning.serve_address_requests)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Raise XrpcError, or pass the request on."""
        if not self._rate.allow(request.remote or "", time.monotonic()):
            raise XrpcError("RateLimitExceeded", "too many requests from this address; retry in a moment", 429)
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape") if kind.lower() == "bearer" else b""
        if self._token and not hmac.compare_digest(given, self._token):
            raise XrpcError(
                "AuthenticationRequired", "send the token of this service as Authorization: Bearer TOKEN", 401
            )
        return await handler(request)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn exceptions into XRPC's error answers, and count the answers."""
    try:
        response = await handler(request)
    except Exception as err:
        response = as_xrpc(request, err).response()
    resource = request.match_info.route.resource
    metrics.SERVE_ANSWERS.labels(resource.canonical if resource else "unknown", str(response.status)).inc()
    return response


def as_xrpc(request: web.Request, error: Exception) -> XrpcError:
    """The answer to an exception of a handler or of routing. An unexpected one is logged and has no detail."""
    if isinstance(error, XrpcError):
        return error
    if isinstance(error, web.HTTPNotFound):
        return XrpcError("MethodNotImplemented", "no such method", 501 if request.path.startswith("/xrpc/") else 404)
    if isinstance(error, web.HTTPException):
        return XrpcError("InvalidRequest", error.reason, error.status)
    if isinstance(error, TooManyCalls):
        return XrpcError("NotEnoughResources", "too many requests are queued; retry in a moment", 503)
    if isinstance(error, UNAVAILABLE):
        log.warning("the database or the log does not answer", extra={"path": request.path, "error": str(error)[:300]})
        return XrpcError("UpstreamFailure", "the database or the log does not answer; retry later", 503)
    log.error("a request failed", exc_info=error, extra={"path": request.path})
    return XrpcError("InternalServerError", "internal error", 500)
