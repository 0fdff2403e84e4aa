"""Keys of accounts while a directory is partly dead, or hosts are silent: the real resolver and identity table."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any

import psycopg
import pytest

from connectors.http.host_names import NAMES_AT_ONCE, HostNames
from connectors.identity.key_lookups import PLC_TRIES, THROTTLED, WEB_PER_HOST, WEB_SECONDS, WebPermits, web_host
from connectors.identity.key_ring import KeyRing, KeyUnavailable
from connectors.runtime.health import Health
from connectors.runtime.stop import Stopping
from schemas.settings import Settings
from simulator.repo.keys import derive_key, multikey
from tests.support.flow_process import wait_until

KNOWN, NEW = "did:plc:" + "k" * 24, "did:plc:" + "n" * 24
KEY = multikey(derive_key("secp256k1", "account"))


class Directory:
    """A PLC directory behind a proxy: `dead` DIDs are answered with 503; its health page has a status of its own.

    With a `rate` it answers so many requests a second, the others with 429, and so it does `puts_off` requests for a DID first.
    It is a did:web host too, which answers 429 only.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.dead: set[str] = set()
        self.health = 404
        self.rate: float | None = None
        self.retry_after: str | None = None
        self.puts_off: dict[str, int] = {}
        self.refused = 0
        self._tokens, self._at, self._lock = 0.0, time.monotonic(), threading.Lock()
        directory = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                did = self.path[1:]
                directory.asked[did] += 1
                key = {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": KEY}
                status, body = 200, json.dumps({"id": did, "verificationMethod": [key]}).encode()
                if did == "_health":
                    status, body = directory.health, b"a page"
                elif did in directory.dead:
                    status, body = 503, b""
                if (
                    did == ".well-known/did.json"
                    or directory.limits()
                    or directory.asked[did] <= directory.puts_off.get(did, 0)
                ):
                    status, body = 429, b"{}"
                self.send_response(status)
                if status == 429 and directory.retry_after is not None:
                    self.send_header("Retry-After", directory.retry_after)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def limits(self) -> bool:
        """Whether this request is one too many."""
        with self._lock:
            if self.rate is None:
                return False
            now = time.monotonic()
            self._tokens = min(self.rate, self._tokens + (now - self._at) * self.rate)
            self._at = now
            allowed = self._tokens >= 1
            self._tokens -= allowed
            self.refused += not allowed
            return not allowed


@pytest.fixture
def directory() -> Iterator[Directory]:
    one = Directory()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture
def ring(directory: Directory, database: str) -> Iterator[KeyRing[str | None]]:
    settings = Settings(database=database, plc=directory.url, allow_private_hosts=True)
    one = KeyRing(settings, Health("firehose"), lambda document: document.signing_key)
    yield one
    one.close()


def find(ring: KeyRing[str | None], dids: set[str]) -> dict[str, str | KeyUnavailable | None]:
    """The key of every DID, when all answers have come. Raises Stopping."""
    found: dict[str, str | KeyUnavailable | None] = dict(ring.known(dids))
    ring.ask(dids - found.keys())
    while dids - found.keys():
        ring.wait()
        found |= {did: key.value for did, key in ring.answers().items()}
    return found


def know(database: str) -> None:
    """As one that was resolved yesterday."""
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into sluice.identity (did, signing_key) values (%s, 'did:key:zQ')", (KNOWN,))


@pytest.mark.parametrize(("health", "known"), [(200, True), (404, False)])
def test_a_directory_that_is_gone_behind_its_proxy_is_waited_for(
    directory: Directory, ring: KeyRing[str | None], database: str, health: int, known: bool
) -> None:
    """N1: whatever its health page says. A commit refused for want of a key could be an account's last one."""
    directory.health, directory.dead = health, {KNOWN, NEW}
    if known:
        know(database)
    found: list[dict[str, str | KeyUnavailable | None]] = []
    thread = threading.Thread(target=lambda: found.append(find(ring, {NEW})), daemon=True)
    thread.start()
    wait_until(lambda: directory.asked[KNOWN if known else "_health"] or found)
    directory.dead = set()
    thread.join(60)
    assert found == [{NEW: f"did:key:{KEY}"}]


def test_one_did_that_alone_gets_no_answer_holds_up_nobody(
    directory: Directory, ring: KeyRing[str | None], database: str
) -> None:
    """The directory has a word for what it knows, so this one is not waited for."""
    know(database)
    directory.dead = {NEW}
    assert find(ring, {NEW}) == {NEW: KeyUnavailable.UNREACHABLE}
    assert (directory.asked[NEW], directory.asked[KNOWN]) == (PLC_TRIES, 1)


@pytest.mark.parametrize("retry_after", [None, "1"])
def test_a_directory_that_limits_our_requests_is_waited_for_and_refuses_nobody(
    directory: Directory, ring: KeyRing[str | None], caplog: pytest.LogCaptureFixture, retry_after: str | None
) -> None:
    """N1, G8: half of 400 true commits were refused for want of a key. Whoever is silent for another reason is still given up."""
    caplog.set_level("INFO")
    directory.rate, directory.retry_after, directory.dead = 20.0, retry_after, {NEW}
    dids = {f"did:plc:{letter}{other}" + "m" * 22 for letter in "abcdefgh" for other in "abcdefgh"}
    ring.ask(dids | {NEW})
    wait_until(lambda: ring.problem == THROTTLED)
    found = find(ring, dids | {NEW})
    assert found == {NEW: KeyUnavailable.UNREACHABLE} | dict.fromkeys(dids, f"did:key:{KEY}")
    assert directory.refused > 0
    assert ring.problem == ""
    limited = [record for record in caplog.records if "limits our requests" in record.message]
    assert len(limited) == 1  # not once for every DID


def test_being_put_off_counts_towards_nothing(
    directory: Directory, ring: KeyRing[str | None], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it happens to one DID, and whatever the directory says about others meanwhile."""
    monkeypatch.setattr("connectors.identity.directory_pace.SHORTEST_REST_SECONDS", 0.05)
    monkeypatch.setattr("connectors.identity.directory_pace.LONGEST_UNNAMED_SECONDS", 0.1)  # else they double to 100 s
    monkeypatch.setattr("connectors.identity.key_lookups.REFUSED_WAIT_SECONDS", 0.01)
    know(database)
    directory.retry_after, directory.puts_off = "0", {NEW: 3 * PLC_TRIES}
    assert find(ring, {NEW, "did:plc:" + "m" * 24})[NEW] == f"did:key:{KEY}"
    assert directory.asked[NEW] == 3 * PLC_TRIES + 1


def test_a_directory_that_limits_us_for_long_does_not_hold_up_a_stop(
    directory: Directory, ring: KeyRing[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    monkeypatch.setattr("connectors.identity.key_lookups.STOP", stop)
    directory.rate, directory.retry_after = 0.0, "300"

    def stop_when_refused() -> None:
        wait_until(lambda: directory.refused)
        stop.set()

    threading.Thread(target=stop_when_refused, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(Stopping):
        find(ring, {NEW, KNOWN})
    assert directory.refused > 0
    assert time.monotonic() - started < 60


def test_a_did_web_host_that_limits_us_for_ever_holds_up_nobody(
    directory: Directory, ring: KeyRing[str | None]
) -> None:
    """G9: only the directory's operator is ours to wait for."""
    directory.retry_after = "300"
    web = f"did:web:localhost%3A{directory.port}"
    assert find(ring, {web, NEW}) == {web: KeyUnavailable.UNREACHABLE, NEW: f"did:key:{KEY}"}
    assert directory.asked == {".well-known/did.json": 1, NEW: 1}


@pytest.fixture
def silent_hosts() -> Iterator[set[str]]:
    """250 did:web whose hosts accept connections and say nothing."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(250)]
        yield {f"did:web:localhost%3A{host.getsockname()[1]}" for host in hosts}


def test_silent_hosts_delay_no_answer_of_the_directory_and_end_in_their_time(
    directory: Directory, ring: KeyRing[str | None], silent_hosts: set[str]
) -> None:
    """G9, H3: anybody can make hundreds of did:web."""
    started = time.monotonic()
    ring.ask(silent_hosts)
    found = find(ring, {NEW})
    assert time.monotonic() - started < WEB_SECONDS - 0.5
    assert found.pop(NEW) == f"did:key:{KEY}"
    while len(found) < len(silent_hosts):
        ring.wait()
        found |= {did: key.value for did, key in ring.answers().items()}
    assert set(found.values()) == {KeyUnavailable.UNREACHABLE}
    assert time.monotonic() - started < 2 * WEB_SECONDS
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


def test_a_did_that_the_directory_refuses_for_ever_ends_while_others_are_answered(
    directory: Directory, ring: KeyRing[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3: one DID that is answered with 429 for ever held the firehose for ever."""
    monkeypatch.setattr("connectors.identity.directory_pace.SHORTEST_REST_SECONDS", 0.05)
    monkeypatch.setattr("connectors.identity.key_lookups.REFUSED_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("connectors.identity.key_lookups.PLC_SECONDS", 0.5)
    directory.retry_after, directory.puts_off = "0", {NEW: 1_000_000}
    ring.ask({NEW})
    others = ("did:plc:" + "".join(letters) * 6 for letters in product("abcdefghijkl", repeat=4))
    found: dict[str, str | KeyUnavailable | None] = {}
    while NEW not in found:
        other = next(others)
        ring.ask({other})  # the directory is well
        while other not in found:
            ring.wait()
            found |= {did: key.value for did, key in ring.answers().items()}
    assert found.pop(NEW) is KeyUnavailable.UNREACHABLE
    assert set(found.values()) == {f"did:key:{KEY}"}
    assert directory.asked[NEW] > PLC_TRIES


def test_negative_answers_hold_longer_with_each_failure_and_news_asks_at_once(
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
