"""Keys of accounts for a flow's step: many DIDs at a time, from memory, `sluice.identity` and the network.

`KeyRing(settings, health, extract).find(dids)` blocks until every DID has its answer: what `extract` takes from its
identity, or a `Lack`. A PLC directory or a database that does not answer delays the caller, with the reason in the health
page, and never becomes an answer; one DID that alone gets none does not hold up the others, and all did:web hosts that are
away hold them up once, for three seconds. A directory that limits our requests is waited for as long as it does: what it
puts off is no silence about a DID. A did:web host that does so is one that is away.
Used by one thread. Its requests run in a loop of their own.
"""

import asyncio
import atexit
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine
from concurrent.futures import Future
from enum import Enum
from typing import Any, Generic, TypeVar

import aiohttp
import psycopg
import psycopg_pool
import uvloop

from connectors import metrics
from connectors.http import open_session
from connectors.process import STOP, Health, Stopping
from connectors.resolver import IdentityNotFound, IdentityUnreachable, Resolver
from schemas.settings import Settings
from steps.identity import Identity

X = TypeVar("X")

WEB_SECONDS = 3.0
PLC_TRIES = 4  # for one DID, while the directory answers about others
WAIT_FIRST_SECONDS = 0.25
WAIT_MAX_SECONDS = 15.0
LOOK_SECONDS = 0.1
CLOSE_SECONDS = 2.0
RERESOLVED_ENTRIES = 20_000
THROTTLED = "waiting for the directory: rate limit"


class Lack(Enum):
    """Why there is nothing to verify with."""

    NO_IDENTITY = "no_identity"
    UNREACHABLE = "unreachable"


class KeyRing(Generic[X]):
    """See the module."""

    def __init__(self, settings: Settings, health: Health, extract: Callable[[Identity], X]) -> None:
        self._settings = settings
        self._health = health
        self._extract = extract
        self._kept: OrderedDict[str, tuple[X | Lack, float]] = OrderedDict()  # and until when, time.monotonic
        self._reresolved: OrderedDict[str, float] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resolver: Resolver | None = None
        self._session: aiohttp.ClientSession | None = None

    def find(self, dids: Collection[str]) -> dict[str, X | Lack]:
        """The answer for every DID. Raises Stopping if the process is to stop meanwhile."""
        now, kept = time.monotonic(), self._kept
        found: dict[str, X | Lack] = {}
        for did in dids:
            entry = kept.get(did)
            if entry is not None and entry[1] > now:
                found[did] = entry[0]
        missing = set(dids).difference(found)
        self._count("memory", len(found))
        if missing:
            found |= self._look_up(missing, fresh=False)
        return found

    def find_again(self, dids: Collection[str]) -> dict[str, X | Lack]:
        """Answers that pass over all caches, for DIDs whose signature did not verify. Those asked for lately are left out."""
        now = time.monotonic()
        due = {did for did in dids if self._reresolved.get(did, 0.0) <= now}
        for did in due:
            self._reresolved[did] = now + self._settings.reresolve_seconds
            self._reresolved.move_to_end(did)
        while len(self._reresolved) > RERESOLVED_ENTRIES:
            self._reresolved.popitem(last=False)
        return self._look_up(due, fresh=True) if due else {}

    def forget(self, dids: Collection[str]) -> None:
        """#identity events arrived: what memory and table hold of these DIDs is out of date."""
        if not dids:
            return
        for did in dids:
            self._kept.pop(did, None)
            self._reresolved.pop(did, None)
        self._patient(lambda resolver: resolver.forget_many(dids))

    def close(self) -> None:
        """End the loop and its connections. Happens at the process's end by itself."""
        atexit.unregister(self.close)
        if self._loop is not None and self._resolver is not None and self._session is not None:
            for last in (self._resolver.close(), self._session.close()):
                try:
                    asyncio.run_coroutine_threadsafe(last, self._loop).result(CLOSE_SECONDS)
                except TimeoutError:
                    break
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _look_up(self, dids: set[str], *, fresh: bool) -> dict[str, X | Lack]:
        web = {did for did in dids if not did.startswith("did:plc:")}
        return self._answers(web, WEB_SECONDS, fresh=fresh) | self._answers(dids - web, None, fresh=fresh)

    def _answers(self, dids: set[str], seconds: float | None, *, fresh: bool) -> dict[str, X | Lack]:
        """`seconds`: hosts of strangers get so long, all together, and one try; None: the directory, which is waited for."""
        found: dict[str, X | Lack] = {}
        tries: Counter[str] = Counter()
        while dids:
            answers = self._ask(dids, fresh, seconds)
            silent = {did: answer for did, answer in answers.items() if isinstance(answer, IdentityUnreachable)}
            unheard = [did for did, answer in silent.items() if not answer.throttled]
            some = len(silent) < len(answers)
            tries.update(unheard)
            for did in unheard if seconds is not None else self._hopeless(unheard, tries, some):
                del silent[did]
            found |= {did: self._keep(did, answer) for did, answer in answers.items() if did not in silent}
            dids = set(silent)
            again = [did for did in unheard if did in dids]
            if again:
                # where the others have their answer, the directory is well: ask soon
                first = WAIT_FIRST_SECONDS / 5 if some else WAIT_FIRST_SECONDS
                self._wait(silent[again[0]], tries[again[0]], first)
        return found

    def _ask(
        self, dids: set[str], fresh: bool, seconds: float | None
    ) -> dict[str, Identity | IdentityNotFound | IdentityUnreachable]:
        age = self._settings.key_cache_seconds
        found: dict[str, Identity | IdentityNotFound | IdentityUnreachable] = self._patient(
            lambda resolver: resolver.resolve_many(dids, max_age=age, fresh=fresh, seconds=seconds),
            directory=seconds is None,
        )
        return found

    def _hopeless(self, unheard: list[str], tries: Counter[str], some: bool) -> list[str]:
        """DIDs that have been asked for often enough while the directory has answers, only none about these."""
        spent = [did for did in unheard if tries[did] >= PLC_TRIES]
        if spent and not some and not self._patient(lambda resolver: resolver.directory_answers()):
            return []
        return spent

    def _keep(self, did: str, answer: Identity | IdentityNotFound | IdentityUnreachable) -> X | Lack:
        kept = self._kept
        if isinstance(answer, Identity):
            value: X | Lack = self._extract(answer)
            life = self._settings.key_cache_seconds
        else:
            value = Lack.NO_IDENTITY if isinstance(answer, IdentityNotFound) else Lack.UNREACHABLE
            life = self._settings.identity_negative_seconds
        self._count("found" if isinstance(answer, Identity) else str(value.value), 1)  # type: ignore[union-attr]  # a Lack
        kept[did] = (value, time.monotonic() + life)
        kept.move_to_end(did)
        while len(kept) > self._settings.key_cache_entries:
            kept.popitem(last=False)
        return value

    def _count(self, result: str, count: int) -> None:
        metrics.KEY_LOOKUPS.labels(self._health.flow, result).inc(count)

    def _wait(self, why: Exception, tries: int, first: float = WAIT_FIRST_SECONDS) -> None:
        """Back off, visibly. A named time is the resolver's to keep."""
        self._health.report("failing", f"identities: {why}"[:300])
        STOP.wait(min(first * 2 ** min(tries, 10), WAIT_MAX_SECONDS))
        if STOP.is_set():
            raise Stopping(str(why))

    def _patient(self, work: Callable[[Resolver], Awaitable[Any]], *, directory: bool = False) -> Any:
        """The result of work in the loop; a database that is away is waited for, and a `directory` that wants a rest."""
        tries = 0
        while True:
            running = self._run(work)
            while not running.done():
                try:
                    running.exception(LOOK_SECONDS)
                except TimeoutError:
                    rests = directory and self._resolver is not None and self._resolver.throttled
                    if rests:
                        self._health.report("failing", THROTTLED)
                    if STOP.is_set() and (rests or tries > 0):
                        running.cancel()
                        raise Stopping("identities") from None
            try:
                return running.result()
            except (psycopg.OperationalError, psycopg_pool.PoolTimeout) as err:
                tries += 1
                self._wait(err, tries)

    def _run(self, work: Callable[[Resolver], Awaitable[Any]]) -> "Future[Any]":
        if self._loop is None:
            self._loop = uvloop.new_event_loop()
            atexit.register(self.close)
            threading.Thread(target=self._loop.run_forever, name="identities", daemon=True).start()

        async def task() -> Any:
            if self._resolver is None:
                self._session = open_session(self._settings)
                self._resolver = Resolver(self._settings, self._session)
            return await work(self._resolver)

        coroutine: Coroutine[Any, Any, Any] = task()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
