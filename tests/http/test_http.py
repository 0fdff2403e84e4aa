"""The guard before every request, and what a request may end as."""

import asyncio
import socket
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from connectors.http.client import (
    LONGEST_WAIT_SECONDS,
    SMALL_JSON,
    HostRefused,
    HttpAnswer,
    Unreachable,
    check_url,
    fetch,
    open_session,
    retry_after,
    to_http_error,
)
from protocol.encoding.bounded_json import BadJson
from schemas.settings import Settings

PUBLIC = Settings()
OPEN = Settings(allow_private_hosts=True)


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
        "https://a\x7fb.example/",
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

    async def main() -> HttpAnswer | Exception:
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
    from connectors.http import client as http

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


def test_a_port_without_a_server_is_unreachable() -> None:
    with socket.socket() as taken:  # bound, so that nobody else gets the port, and not listening
        taken.bind(("127.0.0.1", 0))
        outcome, _ = _get(OPEN, _hello, f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert isinstance(outcome, Unreachable)


def _hops(locations: dict[str, str], settings: Settings = PUBLIC) -> tuple[Any, list[str]]:
    """The outcome where a server sends each path on to a location; loopback plays the public host."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path in locations:
            return web.Response(status=302, headers={"Location": locations[request.path]})
        return web.json_response({"authorization": request.headers.get("Authorization")})

    return _get(settings, handler)


@pytest.mark.parametrize(
    "location",
    [
        "http://plain.example/",
        "https://user:secret@other.example/",
        "https://a b.example/",
        "https://[::1/",
        "file:///x",
    ],
)
def test_every_hop_of_a_redirect_is_checked(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    """G9: only the last URL was checked, so https → http → https passed, and a userinfo became a header."""
    from connectors.http import client as http

    monkeypatch.setattr(http, "address_allowed", lambda _: True)
    real = http.check_url
    # production's rules for every hop but the first, which only a test can have in clear
    monkeypatch.setattr(
        http, "check_url", lambda url, *, allow_private: real(url, allow_private=url.startswith("http://127.0.0.1"))
    )
    outcome, seen = _hops({"/": "/next", "/next": location})
    assert isinstance(outcome, HostRefused), outcome
    assert seen == ["/", "/next"]


def test_redirects_end() -> None:
    """H2"""
    outcome, seen = _hops({"/": "/"}, OPEN)
    assert isinstance(outcome, Unreachable)
    assert len(seen) == 5


def test_a_hop_of_a_websocket_is_checked_too() -> None:
    """G9: aiohttp follows redirects of websockets by itself."""

    async def main() -> list[str]:
        seen: list[str] = []

        async def handler(request: web.Request) -> web.StreamResponse:
            seen.append(request.path)
            raise web.HTTPFound(f"http://user:secret@127.0.0.1:{request.url.port}/inside")

        runner, port = await _served(handler)
        try:
            async with open_session(OPEN, websockets=True) as session:
                with pytest.raises(HostRefused, match="user information"):
                    await session.ws_connect(f"ws://127.0.0.1:{port}/")
        finally:
            await runner.cleanup()
        return seen

    assert asyncio.run(main()) == ["/"]


@pytest.mark.parametrize("body", [b"\xff", b"[" * 100_000, b'{"error":"\xff"}', b"<html>", b"x" * 100_000])
def test_the_status_of_an_error_is_the_answer_whatever_its_body(body: bytes) -> None:
    """H3: invalid UTF-8 was an exception that nobody caught."""

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=404, body=body)

    answer, _ = _get(OPEN, handler)
    assert (answer.status, answer.error) == (404, None)
    assert len(answer.body) <= 16 * 1024


def test_a_compressed_body_is_not_unpacked() -> None:
    """H2: a small answer stands for gigabytes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=zlib.compress(b"0" * 8_000_000), headers={"Content-Encoding": "deflate"})

    answer, _ = _get(OPEN, handler)
    assert len(answer.body) < 16 * 1024
    with pytest.raises(BadJson):
        answer.json(SMALL_JSON)


def test_error_names_and_failures_are_printable() -> None:
    """H8"""

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "Bad\x1b]0;owned\x07", "message": "x"}, status=400)

    answer, _ = _get(OPEN, handler)
    assert answer.error == "Bad\ufffd]0;owned\ufffd"
    failure = to_http_error(aiohttp.ClientError("status line \x1b[2J\r\nWARNING forged"), "https://a.example/")
    assert str(failure) == "a.example: status line \ufffd[2J WARNING forged"
