"""Sockets of event streams against an upstream that refuses them: in-process, no broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import pytest
from aiohttp import web

from connectors.atproto.stream_sockets import LONGEST_REST_SECONDS, Sockets, UpstreamSocket, _RateLimited
from schemas.settings import Settings
from steps.backoff import FAILED_MAX_SECONDS, reconnect_seconds


class Refusing:
    """An upstream that answers every websocket with a status, and when it did."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.at: list[float] = []
        self.status, self.headers = status, headers

    async def serve(self, _request: web.Request) -> web.Response:
        self.at.append(time.monotonic())
        return web.Response(status=self.status, headers=self.headers)


async def attempts(upstream: Refusing, count: int) -> list[float]:
    """Seconds between the first attempts."""
    app = web.Application()
    app.router.add_get("/xrpc/stream", upstream.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    sockets = Sockets(Settings(allow_private_hosts=True), "firehose", "stream", {url: None})
    running = asyncio.create_task(sockets._main())
    try:
        async with asyncio.timeout(60):
            while len(upstream.at) < count:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.cleanup()
    assert "Retry-After" in sockets.problems() or not upstream.headers
    return [later - earlier for earlier, later in zip(upstream.at, upstream.at[1:], strict=False)]


@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_websocket_is_opened_again_after_the_retry_after_of_the_upstream(status: int) -> None:
    """R3: it was tried again after 0.25 s, 0.5 s, 1 s …"""
    waits = asyncio.run(attempts(Refusing(status, {"Retry-After": "2"}), 2))
    assert min(waits) >= 2.0


def test_without_a_time_the_back_off_holds() -> None:
    assert max(asyncio.run(attempts(Refusing(429, {}), 3))) < 10.0  # one second at most, and a slow machine


def test_the_time_that_an_upstream_names_is_bounded_and_jittered() -> None:
    """H5."""
    upstream = UpstreamSocket("http://relay.test", None)
    sockets = Sockets(Settings(), "firehose", "stream", {})
    sockets._after(upstream, _RateLimited("answered 429", 86_400.0))
    waits = {reconnect_seconds(upstream.failures, upstream.short, n / 100, upstream.retry_after) for n in range(100)}
    assert min(waits) >= LONGEST_REST_SECONDS
    assert LONGEST_REST_SECONDS < max(waits) <= 1.25 * LONGEST_REST_SECONDS
    sockets._after(upstream, ConnectionError("gone"))  # the rest was of that answer only
    assert reconnect_seconds(upstream.failures, upstream.short, 1.0, upstream.retry_after) <= FAILED_MAX_SECONDS
