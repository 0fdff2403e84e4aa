"""DID → ResolvedIdentity: through a bounded cache in memory, `sluice.identity`, and the PLC directory or the did:web host.

`Resolver(settings, session).resolve(did)` sends one request for concurrent callers. It raises `IdentityNotFound` (there is no
such identity, or its host is refused; cached for a while) or `IdentityUnreachable` (no usable response). An expired row of the
table is used while the directory is down, except with `fresh`. Requests are rate-limited; after a 429, or a 503 with
Retry-After, no request is sent to the directory for that time.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection

import aiohttp
from cachetools import TLRUCache, TTLCache

from connectors.http.client import DOCUMENT_JSON, HostRefused, HttpAnswer, Unreachable, fetch, retry_after
from connectors.identity.batch_loader import BatchLoader
from connectors.identity.directory_pace import DirectoryPace
from connectors.identity.directory_probe import DirectoryProof, has_directory_message, read_document
from connectors.postgres.connection import OUTAGE_SECONDS, AsyncPool
from protocol.did_document import IdentityRejected, ResolvedIdentity, document_url
from schemas.settings import Settings
from schemas.sql import queries

REQUESTS_AT_ONCE = 64
WEB_REQUESTS_AT_ONCE = 256  # to did:web hosts; separate, so that hanging hosts cannot block the directory
KNOWN_TO_ASK = 3
STORE_CONNECTIONS = 2
MEMORY_SECONDS = 10.0  # lifetime in memory; short, because other processes invalidate identities through the table
NEGATIVE_ENTRIES = 20_000

log = logging.getLogger("identities")


class IdentityNotFound(Exception):
    """The DID has no usable document: unknown, tombstoned, of another method, malformed, or at a refused host.

    `gone`: the directory or host answered that the document was removed.
    """

    def __init__(self, detail: str, *, gone: bool = False) -> None:
        super().__init__(detail)
        self.gone = gone


class IdentityUnreachable(Exception):
    """No usable response from the directory or host. `retry_after`: seconds, if it sent that header.

    `throttled`: the directory limits our requests; never set for a did:web host. `unusable`: the directory is up, but its
    answer is not this DID's document.
    """

    def __init__(
        self, detail: str, retry_after: float | None = None, *, throttled: bool = False, unusable: bool = False
    ) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self.throttled = throttled
        self.unusable = unusable


LookupResult = ResolvedIdentity | IdentityNotFound | IdentityUnreachable


class Resolver:
    """One per process, for one event loop; close it in that loop. `outage_seconds`: seconds to wait for PostgreSQL."""

    def __init__(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        outage_seconds: float = OUTAGE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._session = session
        self._cache: TLRUCache[str, tuple[ResolvedIdentity, float]] = TLRUCache(
            settings.tuning.identity_cache_entries, ttu=lambda _did, entry, now: now + entry[1], timer=clock
        )
        self._flights: dict[tuple[str, bool], asyncio.Task[ResolvedIdentity]] = {}
        self._missing: TTLCache[str, IdentityNotFound] = TTLCache(
            NEGATIVE_ENTRIES, settings.tuning.identity_negative_seconds, timer=clock
        )
        self._permits = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._web_permits = asyncio.Semaphore(WEB_REQUESTS_AT_ONCE)
        self._pace = DirectoryPace(settings.identity_requests_per_second, clock)
        self._proof = DirectoryProof(self._known_documents, clock)
        self._sql = queries("identity")
        self._pool = AsyncPool(settings.database, "sluice resolver", STORE_CONNECTIONS, outage_seconds)
        self._look_ups: BatchLoader[str, tuple[ResolvedIdentity, float]] = BatchLoader(self.stored)
        self._stores: BatchLoader[ResolvedIdentity, None] = BatchLoader(self._store_many)

    async def resolve(self, did: str, *, fresh: bool = False) -> ResolvedIdentity:
        """The identity of a DID; `fresh` bypasses all caches. Raises IdentityNotFound, IdentityUnreachable."""
        entry = None if fresh else self._cache.get(did)
        if entry is not None:
            return entry[0]
        flight = self._flights.get((did, fresh))
        if flight is None:
            flight = asyncio.create_task(self._look_up(did, fresh))
            self._flights[did, fresh] = flight
            flight.add_done_callback(lambda _: self._flights.pop((did, fresh), None))
        return await asyncio.shield(flight)  # shield: a caller that is cancelled must not cancel the others

    async def resolve_many(self, dids: Collection[str], *, max_age: float) -> dict[str, LookupResult]:
        """Results for many DIDs: one query, then the network. Does not fill the cache in memory.

        `max_age`: of a stored identity, in seconds. An older one is used only if the network does not answer.
        """
        stored = await self.stored(dids)
        found: dict[str, LookupResult] = {did: identity for did, (identity, age) in stored.items() if age <= max_age}
        rest = [did for did in dict.fromkeys(dids) if did not in found]
        answers = await self._ask_all(rest, None)
        for did, answer in zip(rest, answers, strict=True):
            old = stored.get(did)
            found[did] = old[0] if old is not None and isinstance(answer, IdentityUnreachable) else answer
        return found

    async def ask(self, did: str, seconds: float | None) -> LookupResult:
        """The network's result as a value, bypassing memory and table except a cached IdentityNotFound.

        `seconds`: time limit; without one, the identity is stored too.
        """
        missing = self._missing.get(did)
        if missing is not None:
            return missing
        try:
            identity = await self._ask(did, seconds)
        except (IdentityUnreachable, IdentityNotFound) as err:
            return err
        if seconds is None:  # not after the batch: with a rate limit it takes minutes, and the process may end before
            await self._stores.one(identity)
        return identity

    async def store(self, identity: ResolvedIdentity) -> None:
        """Write a result of `ask` to the table."""
        await self._stores.one(identity)

    async def stored(self, dids: Collection[str]) -> dict[str, tuple[ResolvedIdentity, float]]:
        """The stored rows of many DIDs, with their age in seconds."""
        rows = await self._pool.fetch(self._sql["find_many"], (list(dids),))
        return {row[0]: (ResolvedIdentity(*row[:-1]), float(row[-1])) for row in rows}

    @property
    def throttled(self) -> bool:
        """Whether the PLC directory limits our requests now. May be read from any thread."""
        return self._pace.resting

    def forget(self, did: str) -> None:
        """Remove a DID from memory, for example after an #identity event."""
        self._cache.pop(did, None)
        self._missing.pop(did, None)

    async def forget_many(self, dids: Collection[str]) -> None:
        """Remove DIDs from memory and from the table."""
        for did in dids:
            self.forget(did)
        await self._pool.fetch(self._sql["forget"], (sorted(dids),))

    async def directory_answers(self) -> bool:
        """Whether the PLC directory is up: it answers for DIDs that resolved before.

        Its health page is used only if no DID is known yet, because a proxy may serve one without the directory, and a mirror
        may have none.
        """
        rows = await self._some_known()
        if rows:
            answers = await self._ask_all(rows, self._settings.tuning.fetch_connect_seconds)
            return any(not isinstance(answer, IdentityUnreachable) for answer in answers)
        return await self._healthy()

    async def _some_known(self) -> list[str]:
        rows = await self._pool.fetch(self._sql["some_plc"], (KNOWN_TO_ASK,))
        return [str(row[0]) for row in rows]

    async def _healthy(self) -> bool:
        try:
            answer = await self._fetch(f"{self._settings.plc}/_health", self._settings.tuning.fetch_connect_seconds)
        except (HostRefused, Unreachable):
            return False
        return answer.status == 200

    async def close(self) -> None:
        await self._pool.close()

    async def _look_up(self, did: str, fresh: bool) -> ResolvedIdentity:
        stored, age = (None if fresh else await self._look_ups.one(did)) or (None, 0.0)
        life = self._settings.tuning.identity_cache_seconds - age
        if stored is not None and life > 0:
            return self._keep(stored, life)
        missing = None if fresh else self._missing.get(did)
        if missing is not None:
            raise IdentityNotFound(str(missing), gone=missing.gone)
        try:
            identity = await self._ask(did)
        except IdentityUnreachable:
            if stored is None:
                raise
            return stored  # expired, but used while the directory is down
        await self._stores.one(identity)
        return self._keep(identity, self._settings.tuning.identity_cache_seconds)

    async def _ask_all(self, dids: Collection[str], seconds: float | None) -> list[LookupResult]:
        """The network's results in the order of the DIDs. `seconds`: time limit for all together."""
        asked = {did: asyncio.create_task(self.ask(did, seconds)) for did in dids}
        try:
            if asked:
                await asyncio.wait(asked.values(), timeout=seconds)
        finally:  # after the time limit, or when the caller is cancelled
            for one in asked.values():
                one.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)
        return [
            IdentityUnreachable(f"{did}: no answer in time") if task.cancelled() else task.result()
            for did, task in asked.items()
        ]

    async def _ask(self, did: str, seconds: float | None = None) -> ResolvedIdentity:
        try:
            return await self._asked(did, seconds or self._settings.tuning.fetch_connect_seconds)
        except IdentityNotFound as err:
            self._missing[did] = err
            raise
        except (
            ValueError,
            TypeError,
            OverflowError,
            RecursionError,
        ) as err:  # a bug in our code, triggered by an unusual response
            log.warning("an identity's answer", extra={"did": did, "error": repr(err)[:300]})
            raise IdentityUnreachable(f"{did}: {err!r}"[:300]) from err

    async def _fetch(self, url: str, seconds: float) -> HttpAnswer:
        return await fetch(
            self._session,
            url,
            allow_private=self._settings.allow_private_hosts,
            limit=DOCUMENT_JSON.size,
            total_seconds=seconds,
        )

    async def _asked(self, did: str, seconds: float) -> ResolvedIdentity:
        url = document_url(did, self._settings.plc)
        if url is None:
            raise IdentityNotFound(f"{did[:200]}: not a DID that the network uses")
        plc, asked_at = did.startswith("did:plc:"), self._clock()
        answer = await self._answer(did, url, seconds, plc=plc)
        if answer.status in (404, 410):
            if plc and not has_directory_message(answer) and not await self._proof.since(asked_at):
                why = f"{did}: {url} answered {answer.status} without a directory's message"
                raise IdentityUnreachable(f"{why}; is SLUICE_PLC a PLC directory?")
            raise IdentityNotFound(f"{did}: {url} answered {answer.status}", gone=answer.status == 410 or not plc)
        parsed = read_document(did, answer)
        if isinstance(parsed, IdentityRejected):
            why = f"{did}: {parsed.reason}, {parsed.detail}"
            if not plc:
                raise IdentityNotFound(why)
            unusable = await self._proof.since(asked_at)
            raise IdentityUnreachable(f"{why}; is SLUICE_PLC a PLC directory?", unusable=unusable)
        if plc:
            self._proof.seen()
        return parsed

    async def _answer(self, did: str, url: str, seconds: float, *, plc: bool) -> HttpAnswer:
        """A response with status 200, 404 or 410. Raises IdentityNotFound, IdentityUnreachable."""
        try:
            async with self._permits if plc else self._web_permits:
                if plc:  # after the permit, because a cooldown may have begun during the wait for it
                    await self._pace.wait()
                answer = await self._fetch(url, seconds)
        except HostRefused as err:
            if plc:  # our own setting is wrong; nothing is known about the DID
                raise IdentityUnreachable(
                    f"SLUICE_PLC is refused: {err}; SLUICE_ALLOW_PRIVATE_HOSTS=true permits own networks"
                ) from err
            raise IdentityNotFound(f"{did}: {err}") from err
        except Unreachable as err:
            if plc:
                self._pace.failed()
            raise IdentityUnreachable(f"{did}: {err}") from err
        wait = retry_after(answer.headers, time.time())
        throttled = plc and (answer.status == 429 or (answer.status == 503 and wait is not None))
        if throttled:
            self._pace.throttled(wait)
        elif plc:
            (self._pace.answered if answer.status < 500 else self._pace.failed)()
        if answer.status in (200, 404, 410):
            return answer
        raise IdentityUnreachable(f"{did}: {url} answered {answer.status}", wait, throttled=throttled)

    async def _known_documents(self) -> bool:
        """Whether the directory has the document of a DID that resolved before (see `directory_answers`)."""
        rows = await self._some_known()
        for did in rows:
            url = document_url(did, self._settings.plc) or ""
            try:
                answer = await self._answer(did, url, self._settings.tuning.fetch_connect_seconds, plc=True)
            except (IdentityNotFound, IdentityUnreachable):
                continue
            if isinstance(read_document(did, answer), ResolvedIdentity):
                return True
        return not rows and await self._healthy()

    def _keep(self, identity: ResolvedIdentity, seconds: float) -> ResolvedIdentity:
        self._cache[identity.did] = identity, min(seconds, MEMORY_SECONDS)
        return identity

    async def _store_many(self, identities: Collection[ResolvedIdentity]) -> dict[ResolvedIdentity, None]:
        newest = {one.did: one for one in identities}
        rows = [
            (one.did, one.pds, one.handle, one.signing_key, one.label_key, one.labeler)
            for _, one in sorted(newest.items())
        ]
        if rows:
            await self._pool.fetch(self._sql["put"], [list(column) for column in zip(*rows, strict=True)])
        return {}
