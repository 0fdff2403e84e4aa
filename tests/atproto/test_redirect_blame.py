"""Whose budget and failures change: those of the host that we asked, and an operator can end a pause."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from aiohttp import web

from connectors.atproto import rate_budget as budget_module
from connectors.atproto.pds import FetchFailed, PdsClient
from connectors.atproto.rate_budget import HostBudget, HostPaused
from connectors.atproto.spool import SpoolBudget
from connectors.http.client import open_session
from control import hosts
from schemas.errors import OperatorError
from schemas.settings import Settings
from steps.retry import FailureReason

DID = "did:plc:abcdefghijklmnopqrstuvwx"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def through_redirect(
    database: str, victim: Handler, before: Callable[[HostBudget, str], Awaitable[None]] | None = None
) -> tuple[FetchFailed | None, str, str]:
    """Ask a host that redirects to another one, `victim`: (failure, URL of the first, URL of the other)."""
    settings = Settings(database=database, allow_private_hosts=True)

    async def main() -> tuple[FetchFailed | None, str, str]:
        urls: list[str] = []

        async def redirect(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": urls[1] + request.path_qs})

        runners = []
        for handler in (redirect, victim):
            app = web.Application()
            app.router.add_get("/{rest:.*}", handler)
            runners.append(web.AppRunner(app, shutdown_timeout=0.1))
            await runners[-1].setup()
            await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runners[-1].addresses[0][1]}")
        session, shared = open_session(settings), HostBudget(settings)
        try:
            if before is not None:
                await before(shared, urls[1])
            client = PdsClient(settings, session, shared, SpoolBudget(1 << 20, 1 << 20))
            download = await client.get_repo(DID, urls[0])
            download.spool.close()
            return None, urls[0], urls[1]
        except FetchFailed as err:
            return err, urls[0], urls[1]
        finally:
            await shared.close()
            await session.close()
            for runner in runners:
                await runner.cleanup()

    return asyncio.run(main())


def row(database: str, host: str) -> tuple[Any, ...]:
    with psycopg.connect(database) as db:
        query = "select paused_until is not null, request_limit, failures from sluice.host where host = %s"
        return db.execute(query, (host,)).fetchone() or (False, None, 0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (429, FailureReason.RATE_LIMITED),
        (404, FailureReason.HTTP_STATUS),
        (503, FailureReason.HTTP_STATUS),
        (200, None),
    ],
)
def test_answers_of_a_redirect_target_do_not_change_its_budget(
    database: str, status: int, reason: FailureReason | None
) -> None:
    """H4: any PDS could have another one paused for an hour, or its budget lowered to one request."""
    headers = {
        "Retry-After": "3600",
        "RateLimit-Limit": "1",
        "RateLimit-Remaining": "0",
        "RateLimit-Policy": "1;w=3600",
    }

    async def victim(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers=headers, text="x")

    failed, asked, other = through_redirect(database, victim)
    assert row(database, other) == (False, None, 0)
    if reason is None:
        assert failed is None
    else:
        assert failed is not None
        assert (failed.failure.reason, failed.host) == (reason, asked)


def test_a_redirect_to_a_paused_host_pauses_the_redirecting_host(database: str) -> None:
    """H4, H5: uncounted, without blame, it could go on for ever."""

    async def victim(_: web.Request) -> web.StreamResponse:
        raise AssertionError("no request is allowed")

    async def pause(shared: HostBudget, other: str) -> None:
        await shared.pause(other, 600.0, "it said so")

    failed, asked, _ = through_redirect(database, victim, pause)
    assert failed is not None
    assert (failed.failure.reason, failed.host) == (FailureReason.RATE_LIMITED, asked)


def test_an_operator_ends_a_pause_and_workers_notice(database: str) -> None:
    """H4: an hour's pause stayed in each worker's memory, whatever the database said."""
    settings, host = Settings(database=database), "https://pds.example"
    with psycopg.connect(database, autocommit=True) as db:
        for did, error in (
            (DID, "rate_limited: 429"),
            ("did:plc:b", "http_status: 500"),
            ("did:plc:c", "host_paused: x"),
        ):
            db.execute(
                "insert into sluice.repo (did, host, next_retry_at, last_error) values (%s, %s, now() + interval '1 h', %s)",
                (did, host, error),
            )

        async def main() -> None:
            clock = SimpleNamespace(now=1000.0)
            shared, other = (HostBudget(settings, lambda: clock.now) for _ in range(2))
            try:
                await shared.apply_headers(host, {"RateLimit-Limit": "1"})
                await shared.pause(host, 3600.0, "429")
                with pytest.raises(HostPaused):
                    await shared.acquire(host)
                with pytest.raises(HostPaused):
                    await other.acquire(host)
                done = await asyncio.to_thread(hosts.clear, settings, ["pds.example"])
                assert (done.hosts, done.repos) == ([host], 2)
                with pytest.raises(HostPaused):
                    await shared.acquire(host)  # it asks the database every few seconds only
                clock.now += budget_module.PAUSE_CHECK_SECONDS
                await shared.acquire(host)
                await other.acquire(host)
            finally:
                await shared.close()
                await other.close()

        asyncio.run(main())
        due = db.execute("select did from sluice.repo where next_retry_at <= now() order by did").fetchall()
        assert due == [(DID,), ("did:plc:c",)]
        assert db.execute("select paused_until, request_limit from sluice.host").fetchall() == [(None, None)]
    with pytest.raises(OperatorError, match=r"https://nobody\.example"):
        hosts.clear(settings, ["nobody.example"])


@pytest.mark.parametrize("served", [0, 10])
def test_a_host_that_always_answers_429_is_asked_at_growing_intervals(
    monkeypatch: pytest.MonkeyPatch, served: int
) -> None:
    """H5, G11: with `Retry-After: 0`; requests in a simulated day, and never more than one an hour at last.

    `served`: one request in so many is answered.
    """

    async def main() -> list[int]:
        clock = SimpleNamespace(now=1000.0)
        shared = HostBudget(Settings(database="postgresql://unused@localhost/unused"), lambda: clock.now)

        async def execute(name: str, **values: Any) -> tuple[Any, ...] | None:
            paused = max(0.0, state.paused_until - clock.now)
            return (0 if paused else 1, 0.0, paused, "429", 3000) if name == "lease" else None

        monkeypatch.setattr(shared, "_execute", execute)
        state, hours, asked = shared._state("h"), [0] * 24, 0
        while clock.now < 1000.0 + 24 * 3600:
            try:
                await shared.acquire("h")
            except HostPaused as paused:
                clock.now += paused.seconds
                continue
            asked += 1
            hours[min(23, int((clock.now - 1000.0) // 3600))] += 1
            clock.now += 0.1
            if served and asked % served == 0:
                await shared.record_served("h")
            else:
                await shared.pause("h", 0.0, "429")
        return hours

    hours = asyncio.run(main())
    assert hours[0] <= (80 if served else 20)
    assert max(hours[2:]) <= (80 if served else 2)


def test_a_host_serves_a_limited_number_of_requests_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """B3: the limit holds also for hosts that only redirects lead to, and other hosts do not wait for it."""

    async def main() -> tuple[int, int, int]:
        shared = HostBudget(Settings(database="postgresql://unused@localhost/unused", pds_concurrency=2))

        async def free(host: str) -> None:
            pass

        monkeypatch.setattr(shared, "acquire", free)
        monkeypatch.setattr(budget_module, "KEPT_HOSTS", 1)
        running, most, others = 0, 0, 0

        async def ask(host: str) -> None:
            nonlocal running, most, others
            async with shared.request(host):
                if host == "busy":
                    running += 1
                    most = max(most, running)
                    await asyncio.sleep(0.01)
                    running -= 1
                else:
                    others += running > 0

        # another host between them must not make the busy one forgotten, and its limit with it
        hosts = ["busy", "busy", "other", "busy", "another", "busy"]
        await asyncio.gather(*(ask(host) for host in hosts))
        return most, others, sum(state.users for state in shared._hosts.values())

    assert asyncio.run(main()) == (2, 2, 0)
