"""getRepo against servers that answer as they please: every answer is a Download or a typed failure, within its bounds."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from connectors.atproto.pds import Download, FetchFailed, PdsClient, origin
from connectors.atproto.rate_budget import HostBudget
from connectors.atproto.spool import Spool, SpoolBudget, SpoolFull
from connectors.http.client import open_session
from protocol.car import CarLimits
from protocol.car_format import CarError
from schemas.settings import Settings
from steps.retry import Failure, FailureReason

START = b"\x3a\xa2"  # a header's length, and a map: the body may be a CAR
DID = "did:plc:abcdefghijklmnopqrstuvwx"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Fetched:
    """What came of it: bytes or a failure; and what the spools hold afterwards."""

    body: bytes | None = None
    on_disk: bool = False
    failure: Failure | None = None
    seen: list[str] = field(default_factory=list)


async def collect(download: Download) -> bytes:
    spool = download.spool
    if spool.on_disk:
        assert spool._fd is not None
        return os.pread(spool._fd, spool.size, 0)
    return bytes(spool._data)


def fetch(
    database: str, handler: Handler, *, path: str = "", memory: int = 1 << 20, disk: int = 1 << 24, **given: Any
) -> Fetched:
    """Serve `handler` on loopback and ask it for the repo."""
    settings = Settings(**({"database": database, "allow_private_hosts": True, "fetch_total_seconds": 120.0} | given))

    async def main() -> Fetched:
        seen: list[str] = []

        async def serve(request: web.Request) -> web.StreamResponse:
            seen.append(request.path_qs)
            return await handler(request)

        app = web.Application()
        app.router.add_get("/{rest:.*}", serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        session, budget, spools = open_session(settings), HostBudget(settings), SpoolBudget(memory, disk)
        result = Fetched(seen=seen)
        try:
            download = await PdsClient(settings, session, budget, spools).get_repo(
                DID, f"http://127.0.0.1:{port}{path}"
            )
            result.body, result.on_disk = await collect(download), download.spool.on_disk
            download.spool.close()
        except FetchFailed as err:
            result.failure = err.failure
        finally:
            await budget.close()
            await session.close()
            await runner.cleanup()
        assert spools.held("memory") == spools.held("disk") == 0, "every byte was given back"
        return result

    return asyncio.run(main())


def answers(status: int, body: str | bytes = b"", **headers: str) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(status=status, body=data, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handler


def test_a_small_repo_stays_in_memory_and_a_large_one_goes_to_disk(database: str) -> None:
    """G6: the same bytes either way."""
    body = START + os.urandom(300_000)
    small = fetch(database, answers(200, body))
    large = fetch(database, answers(200, body), car_memory_bytes=100_000)
    crowded = fetch(database, answers(200, body), memory=50_000)
    assert (small.on_disk, large.on_disk, crowded.on_disk) == (False, True, True)
    assert small.body == large.body == crowded.body == body
    assert small.seen == [f"/xrpc/com.atproto.sync.getRepo?did={DID}"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RepoNotFound", FailureReason.NOT_FOUND),
        ("RepoTakendown", FailureReason.TAKENDOWN),
        ("RepoSuspended", FailureReason.SUSPENDED),
        ("RepoDeactivated", FailureReason.DEACTIVATED),
        ("SomethingElse", FailureReason.HTTP_STATUS),
    ],
)
def test_account_errors_are_distinguished_from_failures(database: str, name: str, reason: FailureReason) -> None:
    failure = fetch(database, answers(400, f'{{"error": "{name}", "message": "m"}}')).failure
    assert failure is not None
    assert failure.reason is reason


def test_an_account_error_in_a_server_error_is_not_believed(database: str) -> None:
    failure = fetch(database, answers(500, '{"error": "RepoNotFound"}')).failure
    assert failure is not None
    assert failure.reason is FailureReason.HTTP_STATUS


@pytest.mark.parametrize(
    ("headers", "wait"),
    [({"Retry_After": "7"}, 7.0), ({"RateLimit_Reset": "12"}, 12.0), ({}, None), ({"Retry_After": "soon"}, None)],
)
def test_a_429_carries_the_wait_that_the_server_named(
    database: str, headers: dict[str, str], wait: float | None
) -> None:
    """R3."""
    failure = fetch(database, answers(429, "<html>Too Many Requests</html>", **headers)).failure
    assert failure is not None
    assert (failure.reason, failure.wait_seconds) == (FailureReason.RATE_LIMITED, wait)


def test_a_repo_above_the_size_limit_is_not_read_on(database: str) -> None:
    """G6, G9."""
    failure = fetch(database, answers(200, START + b"x" * 500_000), backfill_max_car_bytes=100_000).failure
    assert failure is not None
    assert failure.reason is FailureReason.TOO_LARGE


def test_a_repo_is_deferred_if_memory_and_disk_are_used_up(database: str) -> None:
    """G6: our trouble, not the host's."""
    failure = fetch(database, answers(200, START + b"x" * 500_000), memory=50_000, disk=100_000).failure
    assert failure is not None
    assert failure.reason is FailureReason.SPOOL_FULL


def test_redirects_are_followed_and_loops_are_not(database: str) -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        if request.path.startswith("/moved"):
            return web.Response(body=START + b"here")
        return web.Response(status=301, headers={"Location": f"/moved{request.path_qs}"})

    assert fetch(database, elsewhere).body == START + b"here"

    async def round_and_round(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": request.path_qs})

    failure = fetch(database, round_and_round).failure
    assert failure is not None
    assert failure.reason is FailureReason.TOO_MANY_REDIRECTS


@pytest.mark.parametrize(
    "target",
    [
        *("https://u:p@pds.example/x", "file:///etc/passwd", "ftp://pds.example/x"),
        *("http://[", "http://h\xff.example/", "http://\u2177.\u2100/", "//[::1", "https://pds.example:99999999/"),
    ],
)
def test_a_redirect_leads_to_no_forbidden_place(database: str, target: str) -> None:
    """G9: every hop is checked as the first one was; the refusal is the host's failure."""
    failure = fetch(database, answers(302, b"", Location=target)).failure
    assert failure is not None
    assert failure.reason is FailureReason.FORBIDDEN_HOST


def test_private_hosts_are_not_asked_unless_allowed(database: str) -> None:
    """G9."""
    result = fetch(database, answers(200, b"x"), allow_private_hosts=False)
    assert result.failure is not None
    assert result.failure.reason is FailureReason.FORBIDDEN_HOST
    assert result.seen == []


def test_silence_and_slowness_end(database: str) -> None:
    async def silent(_request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(START)
        while True:
            await response.write(b"\xa2")
            await asyncio.sleep(0.05)

    first = fetch(database, silent, fetch_idle_seconds=0.3).failure
    second = fetch(database, slow, fetch_total_seconds=0.6).failure
    assert first is not None
    assert second is not None
    assert (first.reason, second.reason) == (FailureReason.SILENT, FailureReason.TIMEOUT)


def test_a_body_that_ends_early_is_cut_off(database: str) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(START)
        assert request.transport is not None
        request.transport.close()
        return response

    failure = fetch(database, cut).failure
    assert failure is not None
    assert failure.reason is FailureReason.CUT_OFF


def test_a_closed_port_is_unreachable(database: str) -> None:
    failure = fetch(database, answers(200), path="1").failure  # the port with a digit more
    assert failure is not None
    assert failure.reason in (FailureReason.UNREACHABLE, FailureReason.FORBIDDEN_HOST)


def test_a_spool_leaves_no_file_and_no_reservation_behind() -> None:
    budget = SpoolBudget(10, 100)
    spool = Spool(budget, 1000, CarLimits())
    for _ in range(5):
        spool.write(b"12345")
    assert spool.on_disk
    assert (budget.held("memory"), budget.held("disk"), spool.memory) == (0, 25, 0)
    with pytest.raises(SpoolFull):
        spool.write(b"x" * 100)
    with pytest.raises(CarError):
        list(spool.index())
    spool.close()
    spool.close()
    gc.collect()
    assert (budget.held("memory"), budget.held("disk")) == (0, 0)


def test_origins() -> None:
    assert origin("https://pds.example.com:444/xrpc/x?y=z") == "https://pds.example.com:444"


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>maintenance</html>", b"<html>", b'{"error":"x"}', b"\n<html>"])
def test_a_web_page_with_status_200_is_not_a_car(database: str, page: bytes) -> None:
    """B3: named for what it is, from its first bytes, however they come; not read to its end."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(page[:1])
        await asyncio.sleep(0.01)
        await response.write(page[1:])
        for _ in range(1000):
            await response.write(b" " * 100_000)
        return response

    fetched = fetch(database, handler)
    assert fetched.failure is not None
    assert fetched.failure.reason is FailureReason.NOT_A_CAR
    assert "status 200" in str(fetched.failure)
