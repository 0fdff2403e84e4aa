"""The guard before every request, and what a request may end as."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from connectors.http import (
    LONGEST_WAIT_SECONDS,
    Answer,
    HostRefused,
    Unreachable,
    address_allowed,
    check_url,
    fetch,
    open_session,
    retry_after,
)
from schemas.settings import Settings

PUBLIC = Settings(fetch_connect_seconds=2)
OPEN = Settings(allow_private_hosts=True, fetch_connect_seconds=2)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "fec0::1",
        "::7f00:1",
        "::",
    ],
)
def test_private_addresses_are_refused(address: str) -> None:
    """G9"""
    assert not address_allowed(address)


def test_public_addresses_are_allowed() -> None:
    assert address_allowed("1.1.1.1")
    assert address_allowed("2606:4700::1111")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "http://example.com",
        "https://user:pw@example.com/",
        "https:///x",
        "https://example.com:25/",
        "https://example.com:99999/",
        "https://[::1/",
        "https://a\0b.example/",
        "https://a b.example/",
        "https://\u2177.example/",
        "https://\udcff.example/",
        "gopher://x",
    ],
)
def test_odd_urls_are_refused(url: str) -> None:
    """G9"""
    with pytest.raises(HostRefused):
        check_url(url, allow_private=False)


def test_retry_after_forms() -> None:
    assert retry_after({"Retry-After": "7"}, 0) == 7
    assert retry_after({"Retry-After": "Thu, 01 Jan 1970 00:01:00 GMT"}, 10) == 50
    assert retry_after({"RateLimit-Reset": "1700000100"}, 1_700_000_000) == 100
    assert retry_after({"RateLimit-Reset": "30"}, 1_700_000_000) == 30
    assert retry_after({"Retry-After": "soon"}, 0) is None
    assert retry_after({}, 0) is None
    assert retry_after({"Retry-After": "1e9"}, 0) == LONGEST_WAIT_SECONDS
    assert retry_after({"Retry-After": "nan", "RateLimit-Reset": "30"}, 0) == 30


@given(st.text() | st.from_regex(r"Mon, [0-9]{1,30} Jan [0-9]{1,30} 00:00:00 (GMT|[+-][0-9]{1,20})", fullmatch=True))
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("-inf")
def test_no_header_of_a_stranger_is_an_exception(text: str) -> None:
    """G7: a year beyond all calendars ended the flow that asked (did:web hosts are anybody's)."""
    for name in ("Retry-After", "RateLimit-Reset"):
        seconds = retry_after({name: text}, 1_700_000_000)
        assert seconds is None or 0 <= seconds <= LONGEST_WAIT_SECONDS


async def _served(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> tuple[web.AppRunner, int]:
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, int(runner.addresses[0][1])


def _get(
    settings: Settings, handler: Any, url: str = "http://127.0.0.1:{port}/", **options: Any
) -> tuple[Any, list[str]]:
    """Outcome of one request against a server on loopback, and the paths that reached it."""
    seen: list[str] = []

    async def counted(request: web.Request) -> web.StreamResponse:
        seen.append(request.path)
        return await handler(request)

    async def main() -> Answer | Exception:
        runner, port = await _served(counted)
        try:
            async with open_session(settings) as session:
                return await fetch(session, url.format(port=port), allow_private=True, **options)
        except (HostRefused, Unreachable) as err:
            return err
        finally:
            await runner.cleanup()

    return asyncio.run(main()), seen


async def _hello(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": "RepoNotFound"}, status=400)


def test_any_status_is_an_answer() -> None:
    answer, seen = _get(OPEN, _hello)
    assert (answer.status, answer.error, seen) == (400, "RepoNotFound", ["/"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"])
def test_the_socket_guard_refuses_loopback_by_literal_and_by_name(host: str) -> None:
    """G9: even where the URL check is passed (here: told to), no private address is connected to."""
    outcome, seen = _get(PUBLIC, _hello, "http://" + host + ":{port}/")
    assert isinstance(outcome, HostRefused), outcome
    assert seen == []


def test_a_redirect_is_guarded_like_a_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """G9: a public host that redirects to a private one."""
    from connectors import http

    real = http.address_allowed
    allowed = {"127.0.0.1": True}  # play the public host; 127.0.0.2 stays private
    monkeypatch.setattr(http, "address_allowed", lambda address: allowed.get(address) or real(address))

    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"http://127.0.0.2:{request.url.port}/inside")

    outcome, seen = _get(PUBLIC, redirect)
    assert isinstance(outcome, HostRefused), outcome
    assert seen == ["/"]

    async def odd(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("ftp://example.com/")

    outcome, _ = _get(PUBLIC, odd)
    assert isinstance(outcome, HostRefused), outcome


def test_large_and_slow_answers_are_cut() -> None:
    """G6"""

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            return response

    outcome, _ = _get(OPEN, large, limit=200_000)
    assert isinstance(outcome, Unreachable)
    assert "more than 200000 bytes" in str(outcome)

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x")
                await asyncio.sleep(0.05)
        except ConnectionError:
            return response

    outcome, _ = _get(OPEN, trickle, total_seconds=0.4)
    assert isinstance(outcome, Unreachable)


def test_nobody_listens_is_unreachable() -> None:
    with socket.socket() as taken:  # bound, so that nobody else gets the port, and not listening
        taken.bind(("127.0.0.1", 0))
        outcome, _ = _get(OPEN, _hello, f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert isinstance(outcome, Unreachable)
