"""Keys of accounts whose did:web hosts are silent or limit our requests: the real resolver and identity table."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from connectors.http.host_names import NAMES_AT_ONCE, HostNames
from connectors.identity.key_lookups import WEB_PER_HOST, WEB_SECONDS, WebPermits, web_host
from connectors.identity.key_ring import KeyRing, KeyUnavailable
from tests.identity.plc_directory import KEY, NEW, Directory, find


@pytest.fixture
def silent_hosts() -> Iterator[set[str]]:
    """250 did:web whose hosts accept connections and say nothing."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(250)]
        yield {f"did:web:localhost%3A{host.getsockname()[1]}" for host in hosts}


def test_silent_hosts_delay_no_answer_of_the_directory(
    directory: Directory, ring: KeyRing[str | None], silent_hosts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G9, H3: anybody can make hundreds of did:web."""
    monkeypatch.setattr("connectors.identity.key_lookups.WEB_SECONDS", 600.0)
    started = time.monotonic()
    ring.ask(silent_hosts)
    assert find(ring, {NEW}) == {NEW: f"did:key:{KEY}"}, "and none of them has ended"
    assert time.monotonic() - started < 60


def test_silent_hosts_end_in_their_time(
    directory: Directory, ring: KeyRing[str | None], silent_hosts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """G9, H3: the wait for a permit is a part of it. Else 250 of them, ten at a time, would take 75 s."""
    monkeypatch.setattr("connectors.identity.key_lookups.WEB_AT_ONCE", 10)
    monkeypatch.setattr("connectors.identity.key_ring.BUSY_SECONDS", 600.0)  # a slow machine asks late what is known
    ring._lookups._permits = WebPermits()
    started = time.monotonic()
    ring.ask(silent_hosts)
    found: dict[str, str | KeyUnavailable | None] = {}
    while len(found) < len(silent_hosts):
        ring.wait()
        found |= {did: key.value for did, key in ring.answers().items()}
    assert set(found.values()) == {KeyUnavailable.UNREACHABLE}
    assert time.monotonic() - started < 10 * WEB_SECONDS
    assert ring.known(silent_hosts) == found  # not asked again for a while
    assert ring.problem == ""


def test_one_host_has_few_requests_at_once_whatever_ports_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """H3"""

    async def main() -> None:
        permits, held, most, ended = WebPermits(), 0, 0, 0

        async def one(did: str) -> None:
            nonlocal held, most, ended
            async with permits.permit(web_host(did, ports=False)):
                held += 1
                most = max(most, held)
                await asyncio.sleep(0)
                held -= 1
                ended += 1

        await asyncio.gather(*(one(f"did:web:bad.example%3A{port}") for port in range(1024, 1124)))
        assert (most, ended) == (WEB_PER_HOST, 100)
        assert permits._hosts == {}

    asyncio.run(main())


def test_a_key_of_yesterday_serves_while_its_host_is_silent(
    ring: KeyRing[str | None], silent_hosts: set[str], database: str
) -> None:
    did = silent_hosts.pop()
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(
            "insert into sluice.identity (did, signing_key, resolved_at) values (%s, 'did:key:zQ', '2020-01-01')",
            (did,),
        )
    assert ring.known({did}) == {}
    ring.ask({did})
    answers: dict[str, Any] = {}
    while not answers:
        ring.wait()
        answers = ring.answers()
    assert answers == {did: (KeyUnavailable.UNREACHABLE, "did:key:zQ")}
    assert ring.known({did}) == {did: "did:key:zQ"}


def test_names_whose_servers_are_silent_hold_up_no_trusted_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """H3: the loop's own pool looks up two names at once."""
    release, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **more: Any) -> Any:
        if host.endswith(".silent.test"):
            release.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "silent")
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr("connectors.http.host_names.socket.getaddrinfo", getaddrinfo)

    async def main() -> None:
        names = HostNames(["plc.test"])
        asked = [asyncio.create_task(names.resolve(f"{n}.silent.test")) for n in range(NAMES_AT_ONCE)]
        await asyncio.sleep(0)
        one_more = asyncio.create_task(names.resolve("well.test"))
        assert (await names.resolve("plc.test", 443))[0]["host"] == "127.0.0.1"
        assert names.full
        assert not one_more.done()
        release.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in found} == {socket.gaierror}
        assert await one_more
        assert not names.full  # the threads are free again

    asyncio.run(main())


def test_a_did_web_host_that_limits_our_requests_for_ever_delays_no_other(
    directory: Directory, ring: KeyRing[str | None]
) -> None:
    """G9: only the directory's operator is ours to wait for."""
    directory.retry_after = "300"
    web = f"did:web:localhost%3A{directory.port}"
    assert find(ring, {web, NEW}) == {web: KeyUnavailable.UNREACHABLE, NEW: f"did:key:{KEY}"}
    assert directory.asked == {".well-known/did.json": 1, NEW: 1}


def test_negative_answers_are_kept_longer_after_each_failure_and_an_event_asks_at_once(
    directory: Directory, ring: KeyRing[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H5"""
    now = 1000.0
    monkeypatch.setattr("connectors.identity.key_ring.time.monotonic", lambda: now)
    directory.retry_after = None
    web = f"did:web:localhost%3A{directory.port}"  # answers 429
    holds = []
    for _ in range(4):
        assert find(ring, {web}) == {web: KeyUnavailable.UNREACHABLE}
        began = now
        while ring.known({web}):
            now += 10.0
        holds.append(now - began)
    assert holds == [60.0, 120.0, 240.0, 480.0]
    find(ring, {web})
    ring.forget({web})
    assert ring.known({web}) == {}
