"""Network lookups of identities in a background loop: `ask` starts them, `take` returns the results, one per DID.

The PLC directory is trusted: while it is down or limits our requests, lookups are repeated. A did:plc is reported unreachable
only if the directory answers for other DIDs, after PLC_TRIES failures or PLC_SECONDS of rate limits. A did:web host is
untrusted: it gets one request with WEB_SECONDS. At most WEB_PER_HOST requests run per host and WEB_AT_ONCE for all hosts; the
directory's requests do not count towards these.

The loop has its own thread, so that lookups do not block the flow. `ask`, `take`, `stored` and `forget` are for one other
thread.
"""

import asyncio
import atexit
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import psycopg
import psycopg_pool
import uvloop

from connectors.http.client import open_session
from connectors.http.host_names import HostNames
from connectors.identity.directory_probe import DirectoryProof
from connectors.identity.resolver import IdentityUnreachable, LookupResult, Resolver
from connectors.runtime import watchdog, work
from connectors.runtime.health import Health
from connectors.runtime.stop import STOP, Stopping
from protocol.did_document import ResolvedIdentity
from schemas.settings import Settings
from steps.backoff import backoff_seconds

WEB_SECONDS = 3.0
WEB_AT_ONCE = 200
WEB_PER_HOST = 4
PLC_TRIES = 4  # failures of one DID, while the directory answers for others
PLC_SECONDS = 600.0  # of rate limits for one DID, while the directory answers for others
WAIT_FIRST_SECONDS = 0.25
WAIT_MAX_SECONDS = 15.0
REFUSED_WAIT_SECONDS = 0.25  # multiplied by the DID's rate-limited tries; in addition to the cooldown of all requests
POLL_SECONDS = 0.1
CLOSE_SECONDS = 2.0
THROTTLED = "waiting for the directory: rate limit"

log = logging.getLogger("identities")
_DATABASE_AWAY = (psycopg.OperationalError, psycopg_pool.PoolTimeout)


class HostBusy(IdentityUnreachable):
    """No request was sent, because no permit became free in time."""


@dataclass(frozen=True, slots=True)
class Found:
    did: str
    answer: LookupResult


def web_host(did: str, *, ports: bool) -> str:
    """The host of a did:web. `ports`: include the port, for test networks on one machine."""
    host = unquote(did.removeprefix("did:web:"))
    return host if ports else host.partition(":")[0]


class WebPermits:
    """Limits of concurrent requests to untrusted hosts, total and per host. For one event loop."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(WEB_AT_ONCE)
        self._hosts: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def permit(self, host: str) -> AsyncIterator[None]:
        """Wait for a permit of this host and hold it."""
        own = self._hosts.setdefault(host, asyncio.Semaphore(WEB_PER_HOST))
        self._users[host] += 1
        try:
            async with own, self._all:
                yield
        finally:
            self._users[host] -= 1
            if not self._users[host]:
                del self._users[host], self._hosts[host]


class KeyLookups:
    """See the module. The first lookup starts the loop."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resolver: Resolver | None = None
        self._session: aiohttp.ClientSession | None = None
        self._permits = WebPermits()
        self._names = HostNames([urlsplit(settings.plc).hostname or ""])
        self._pending: set[str] = set()
        self._found: deque[Found] = deque()
        self._arrived = threading.Event()
        self._died: BaseException | None = None
        self._beat: Future[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._plc_pending = 0
        self._plc_trouble = ""
        self._proof = DirectoryProof(self._directory_answers)

    @property
    def ready(self) -> bool:
        """Whether `take` would return results, or raise."""
        return bool(self._found) or self._died is not None

    @property
    def problem(self) -> str:
        """Why the PLC directory does not answer, or ''."""
        return self._plc_trouble if self._plc_pending else ""

    def ask(self, dids: Collection[str]) -> None:
        """Start lookups that bypass the table. DIDs whose result is pending are skipped."""
        new = [did for did in dids if did not in self._pending]
        self._pending.update(new)
        if new:
            self._submit(self._begin(new))

    def take(self) -> list[Found]:
        """The results since the last call. Raises RuntimeError if a lookup ended with an unexpected error."""
        if self._died is not None:
            raise RuntimeError("a lookup of an identity failed") from self._died
        self._arrived.clear()
        taken = [self._found.popleft() for _ in range(len(self._found))]
        self._pending.difference_update(found.did for found in taken)
        return taken

    def wait(self, seconds: float = POLL_SECONDS) -> None:
        """Wait for results, at most `seconds`. Raises Stopping if the process stops."""
        if not self._arrived.wait(seconds) and STOP.is_set():
            raise Stopping("identities")

    def stored(self, dids: Collection[str]) -> dict[str, tuple[ResolvedIdentity, float]]:
        """The stored rows of these DIDs, with their age in seconds. Waits while PostgreSQL is unavailable. Raises Stopping."""
        found: dict[str, tuple[ResolvedIdentity, float]] = self._patient(lambda resolver: resolver.stored(dids))
        return found

    def forget(self, dids: Collection[str]) -> None:
        """Remove these DIDs from the table and the resolver's memory. Waits like `stored`."""
        self._patient(lambda resolver: resolver.forget_many(dids))

    def close(self) -> None:
        """Stop the loop and close its connections. Also runs when the process exits."""
        atexit.unregister(self.close)
        if self._loop is not None and self._resolver is not None and self._session is not None:
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSE_SECONDS)
            if self._beat is not None:
                self._beat.cancel()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _patient(self, work: Callable[[Resolver], Awaitable[Any]]) -> Any:
        tries = 0
        while True:
            running = self._submit(self._with_resolver(work))
            while not running.done():
                try:
                    running.exception(POLL_SECONDS)
                except TimeoutError:
                    watchdog.mark()  # the watchdog checks the loop separately
                    if STOP.is_set() and tries > 0:
                        running.cancel()
                        raise Stopping("identities") from None
            try:
                return running.result()
            except _DATABASE_AWAY as err:
                self._health.report("failing", f"identities: {err}"[:300])
                watchdog.wait(STOP, backoff_seconds(tries + 1, WAIT_FIRST_SECONDS, WAIT_MAX_SECONDS))
                tries = min(tries + 1, 10)
                if STOP.is_set():
                    raise Stopping(str(err)) from err

    # --- in the loop

    def _submit(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        if self._loop is None:
            self._loop = uvloop.new_event_loop()
            atexit.register(self.close)
            threading.Thread(target=self._loop.run_forever, name="identities", daemon=True).start()
            self._beat = asyncio.run_coroutine_threadsafe(watchdog.beat("identities"), self._loop)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _with_resolver(self, work: Callable[[Resolver], Awaitable[Any]]) -> Any:
        return await work(self._opened())

    def _opened(self) -> Resolver:
        if self._resolver is None:
            self._session = open_session(self._settings, resolver=self._names)
            self._resolver = Resolver(self._settings, self._session, outage_seconds=0.0)
        return self._resolver

    async def _begin(self, dids: Collection[str]) -> None:
        for did in dids:
            task = asyncio.create_task(self._look_up(did))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _end(self) -> None:
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._resolver is not None and self._session is not None:
            await self._resolver.close()
            await self._session.close()

    async def _look_up(self, did: str) -> None:
        """Look up one DID and queue its result."""
        resolver = self._opened()
        try:
            if did.startswith("did:plc:"):
                answer = await self._at_directory(resolver, did)
            else:
                answer = await self._at_host(resolver, did)
            if isinstance(answer, ResolvedIdentity):
                await self._store(resolver, answer)
        except Exception as err:  # `take` raises it in the flow's thread
            self._died = err
            return
        finally:
            self._arrived.set()
        self._found.append(Found(did, answer))
        self._arrived.set()
        work.ring()

    @staticmethod
    async def _store(resolver: Resolver, identity: ResolvedIdentity) -> None:
        try:
            await resolver.store(identity)
        except _DATABASE_AWAY as err:  # the result is valid without the row
            log.warning("an identity is not stored", extra={"did": identity.did, "why": str(err)[:300]})

    async def _at_host(self, resolver: Resolver, did: str) -> LookupResult:
        """One request to an untrusted host, with its time limit."""
        asked = False
        answer: LookupResult = IdentityUnreachable(f"{did}: no answer in time")
        host = web_host(did, ports=self._settings.allow_private_hosts)
        with suppress(TimeoutError):
            async with asyncio.timeout(WEB_SECONDS), self._permits.permit(host):
                asked = True
                answer = await resolver.ask(did, WEB_SECONDS)
        if isinstance(answer, IdentityUnreachable) and (not asked or self._names.full):
            return HostBusy(f"{did}: too many lookups of did:web hosts are running")
        return answer

    async def _at_directory(self, resolver: Resolver, did: str) -> LookupResult:
        """Repeat requests to the PLC directory until it answers, or for a limited time if it answers for other DIDs."""
        began, tries, refusals = time.monotonic(), 0, 0
        self._plc_pending += 1
        try:
            while True:
                answer = await resolver.ask(did, self._settings.tuning.fetch_connect_seconds)
                if not isinstance(answer, IdentityUnreachable):
                    self._proof.seen()
                    if self._plc_trouble != THROTTLED:  # otherwise other lookups still wait for the rate limit
                        self._plc_trouble = ""
                    return answer
                if answer.throttled:
                    refusals += 1
                    self._plc_trouble = THROTTLED
                    spent = time.monotonic() - began > PLC_SECONDS
                    wait = REFUSED_WAIT_SECONDS * refusals
                else:
                    tries += 1
                    self._plc_trouble = f"identities: {answer}"[:300]
                    spent = tries >= PLC_TRIES
                    first = WAIT_FIRST_SECONDS / 5 if self._proof.seen_at > began else WAIT_FIRST_SECONDS
                    wait = backoff_seconds(tries + 1, first, WAIT_MAX_SECONDS)
                if spent and await self._proof.since(began):
                    return answer
                await asyncio.sleep(min(wait, WAIT_MAX_SECONDS))
        finally:
            self._plc_pending -= 1
            if not self._plc_pending:
                self._plc_trouble = ""

    async def _directory_answers(self) -> bool:
        try:
            return await self._opened().directory_answers()
        except _DATABASE_AWAY:
            return False
