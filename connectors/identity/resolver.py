"""DID → Identity: through a bounded cache in memory, `sluice.identity`, and the PLC directory or the did:web host.

`Resolver(settings, session).resolve(did)` asks the network once for many callers (single flight). It raises
`IdentityNotFound` (there is no such identity, or we must not ask for it; remembered for a while) or `IdentityUnreachable`
(nobody answered: says nothing about the identity). An expired entry serves while the directory is down, unless `fresh` was
asked for. Requests are paced, and a directory that answers 429, or 503 with a time, is left alone for as long as it says.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import aiohttp

from connectors.http.client import DOCUMENT_JSON, HostRefused, HttpAnswer, Unreachable, fetch, retry_after
from connectors.identity.batch_loader import Together
from connectors.identity.directory_pace import Pace
from connectors.identity.directory_probe import DirectoryProof, read_document, says_no
from connectors.postgres.connection import PATIENCE_SECONDS, AsyncPool
from protocol.did_document import Identity, IdentityRejected, document_url
from schemas.settings import Settings
from schemas.sql import queries

REQUESTS_AT_ONCE = 64
WEB_REQUESTS_AT_ONCE = 256  # hosts of strangers: the silent ones take no place of the directory's
KNOWN_TO_ASK = 3
STORE_CONNECTIONS = 2
MEMORY_SECONDS = 10.0  # the table is asked again then: an #identity empties it for all processes
NEGATIVE_ENTRIES = 20_000

log = logging.getLogger("identities")


class IdentityNotFound(Exception):
    """The DID has no document that may be used: unknown, tombstoned, of another method, malformed, or at a refused host.

    `gone`: it had one, and whoever keeps it says that it is no more.
    """

    def __init__(self, detail: str, *, gone: bool = False) -> None:
        super().__init__(detail)
        self.gone = gone


class IdentityUnreachable(Exception):
    """The directory or host did not give an answer; `retry_after` in seconds where it named one.

    `throttled`: the directory, which is there, wants to be asked later. Never of an untrusted host. `unusable`: the directory
    is up and has answered with something else than this DID's document.
    """

    def __init__(
        self, detail: str, retry_after: float | None = None, *, throttled: bool = False, unusable: bool = False
    ) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self.throttled = throttled
        self.unusable = unusable


@dataclass(frozen=True, slots=True)
class _Entry:
    identity: Identity
    expires: float  # time.monotonic


class Resolver:
    """One per process, used in one event loop. Close it in that loop. `patience`: with a database that is away."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession, patience: float = PATIENCE_SECONDS) -> None:
        self._settings = settings
        self._session = session
        self._cache: OrderedDict[str, _Entry] = OrderedDict()
        self._flights: dict[tuple[str, bool], asyncio.Task[Identity]] = {}
        self._missing: OrderedDict[str, tuple[float, IdentityNotFound]] = OrderedDict()
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self._web_turns = asyncio.Semaphore(WEB_REQUESTS_AT_ONCE)
        self._pace = Pace(settings.identity_requests_per_second)
        self._proof = DirectoryProof(self._known_documents)
        self._sql = queries("identity")
        self._pool = AsyncPool(settings.database, "sluice resolver", STORE_CONNECTIONS, patience)
        self._look_ups: Together[str, tuple[Identity, float]] = Together(self._stored_many)
        self._stores: Together[Identity, None] = Together(self._store_many)

    async def resolve(self, did: str, *, fresh: bool = False) -> Identity:
        """The identity of a DID; `fresh` passes over all caches. Raises IdentityNotFound, IdentityUnreachable."""
        entry = self._cache.get(did)
        if entry is not None and not fresh and entry.expires > time.monotonic():
            self._cache.move_to_end(did)
            return entry.identity
        flight = self._flights.get((did, fresh))
        if flight is None:
            flight = asyncio.create_task(self._look_up(did, fresh))
            self._flights[did, fresh] = flight
            flight.add_done_callback(lambda _: self._flights.pop((did, fresh), None))
        return await asyncio.shield(flight)  # one caller's cancellation is not the others'

    async def resolve_many(
        self, dids: Collection[str], *, max_age: float
    ) -> dict[str, Identity | IdentityNotFound | IdentityUnreachable]:
        """Answers for many DIDs: one query, then the network. For callers with a cache of their own: nothing stays in memory.

        `max_age`: of a stored identity, in seconds; an older one serves where the network does not answer.
        """
        stored = await self._stored_many(dids)
        found: dict[str, Identity | IdentityNotFound | IdentityUnreachable] = {
            did: identity for did, (identity, age) in stored.items() if age <= max_age
        }
        rest = [did for did in dict.fromkeys(dids) if did not in found]
        answers = await self._ask_all(rest, None)
        for did, answer in zip(rest, answers, strict=True):
            old = stored.get(did)
            found[did] = old[0] if old is not None and isinstance(answer, IdentityUnreachable) else answer
        return found

    async def ask(self, did: str, seconds: float) -> Identity | IdentityNotFound | IdentityUnreachable:
        """The network's answer as a value, for callers with a cache of their own; `store` keeps it for the others."""
        return await self._ask_for(did, seconds)

    async def store(self, identity: Identity) -> None:
        """Keep an answer of `ask` in the table."""
        await self._stores.one(identity)

    async def stored(self, dids: Collection[str]) -> dict[str, tuple[Identity, float]]:
        """What the table holds of many DIDs, with its age in seconds."""
        return await self._stored_many(dids)

    @property
    def throttled(self) -> bool:
        """Whether the PLC directory has asked to be left alone until later. May be read from any thread."""
        return self._pace.resting

    def forget(self, did: str) -> None:
        """An #identity event arrived: what memory holds of this DID is out of date."""
        self._cache.pop(did, None)
        self._missing.pop(did, None)

    async def forget_many(self, dids: Collection[str]) -> None:
        """The same in memory and in the table."""
        for did in dids:
            self.forget(did)
        await self._pool.fetch(self._sql["forget"], (sorted(dids),))

    async def directory_answers(self) -> bool:
        """Whether the PLC directory has a word for DIDs that it had one for before, whatever it says about another.

        A proxy answers for a directory that is gone, and a mirror may have no health page: that page is believed only
        where no DID is known yet, and only its 200.
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
        """Close the database connections."""
        await self._pool.close()

    async def _look_up(self, did: str, fresh: bool) -> Identity:
        stored, age = (None if fresh else await self._look_ups.one(did)) or (None, 0.0)
        life = self._settings.tuning.identity_cache_seconds - age
        if stored is not None and life > 0:
            return self._keep(stored, life)
        missing = None if fresh else self._missing.get(did)
        if missing is not None and missing[0] > time.monotonic():
            raise IdentityNotFound(str(missing[1]), gone=missing[1].gone)
        try:
            identity = await self._ask(did)
        except IdentityUnreachable:
            if stored is None:
                raise
            return stored  # old, and better than none while the directory is down
        await self._stores.one(identity)
        return self._keep(identity, self._settings.tuning.identity_cache_seconds)

    async def _ask_all(
        self, dids: Collection[str], seconds: float | None
    ) -> list[Identity | IdentityNotFound | IdentityUnreachable]:
        """The network's answers in the order of the DIDs; `seconds` for all of them."""
        asked = {did: asyncio.create_task(self._ask_for(did, seconds)) for did in dids}
        try:
            if asked:
                await asyncio.wait(asked.values(), timeout=seconds)
        finally:  # too late, or nobody waits any more
            for one in asked.values():
                one.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)
        return [
            IdentityUnreachable(f"{did}: no answer in time") if task.cancelled() else task.result()
            for did, task in asked.items()
        ]

    async def _ask_for(self, did: str, seconds: float | None) -> Identity | IdentityNotFound | IdentityUnreachable:
        """The network's answer as a value; a DID that was not there a moment ago is not asked for again."""
        missing = self._missing.get(did)
        if missing is not None and missing[0] > time.monotonic():
            return missing[1]
        try:
            identity = await self._ask(did, seconds)
        except IdentityUnreachable as err:
            return err
        except IdentityNotFound as err:
            return err
        if seconds is None:  # at once: the answers of a directory that limits us take minutes, and the process may end
            await self._stores.one(identity)
        return identity

    async def _ask(self, did: str, seconds: float | None = None) -> Identity:
        try:
            return await self._asked(did, seconds or self._settings.tuning.fetch_connect_seconds)
        except IdentityNotFound as err:
            self._missing[did] = (time.monotonic() + self._settings.tuning.identity_negative_seconds, err)
            self._missing.move_to_end(did)
            while len(self._missing) > NEGATIVE_ENTRIES:
                self._missing.popitem(last=False)
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as err:  # an answer that nobody thought of
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

    async def _asked(self, did: str, seconds: float) -> Identity:
        url = document_url(did, self._settings.plc)
        if url is None:
            raise IdentityNotFound(f"{did[:200]}: not a DID that the network uses")
        plc, asked_at = did.startswith("did:plc:"), time.monotonic()
        answer = await self._answer(did, url, seconds, plc=plc)
        if answer.status in (404, 410):
            if plc and not says_no(answer) and not await self._proof.since(asked_at):
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
        """A document, or the word that there is none. Raises IdentityNotFound, IdentityUnreachable."""
        try:
            async with self._turns if plc else self._web_turns:
                if plc:  # inside: who waited long for a place must not pass a rest that has begun
                    await self._pace.turn()
                answer = await self._fetch(url, seconds)
        except HostRefused as err:
            if plc:  # our own setting is wrong, which says nothing about the DID
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
        """Whether the directory has the document of a DID that it had one for before; see `directory_answers`."""
        rows = await self._some_known()
        for did in rows:
            url = document_url(did, self._settings.plc) or ""
            try:
                answer = await self._answer(did, url, self._settings.tuning.fetch_connect_seconds, plc=True)
            except (IdentityNotFound, IdentityUnreachable):
                continue
            if isinstance(read_document(did, answer), Identity):
                return True
        return not rows and await self._healthy()

    def _keep(self, identity: Identity, seconds: float) -> Identity:
        self._cache[identity.did] = _Entry(identity, time.monotonic() + min(seconds, MEMORY_SECONDS))
        self._cache.move_to_end(identity.did)
        while len(self._cache) > self._settings.tuning.identity_cache_entries:
            self._cache.popitem(last=False)
        return identity

    async def _stored_many(self, dids: Collection[str]) -> dict[str, tuple[Identity, float]]:
        rows = await self._pool.fetch(self._sql["find_many"], (list(dids),))
        return {row[0]: (Identity(*row[:-1]), float(row[-1])) for row in rows}

    async def _store_many(self, identities: Collection[Identity]) -> dict[Identity, None]:
        if not identities:
            return {}
        values = [
            (one.did, one.pds, one.handle, one.signing_key, one.label_key, one.labeler)
            for one in sorted(identities, key=lambda one: one.did)
        ]
        await self._pool.many(self._sql["put"], values)
        return {}
