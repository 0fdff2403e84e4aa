"""Handle verification in both directions: `HandleResolver` queries a domain, `HandleChecks` checks the rows of `sluice.handle`.

A check resolves the DID, takes the handle that its document claims, and queries the handle's domain by DNS and HTTPS, with the
SSRF guard. A DID that the domain confirms becomes the owner: the same transaction removes the handle from the previous owner,
and a unique index prevents two owners. An unavailable directory or DNS server delays a check and changes nothing; an unavailable web
host ends `verified` after WEB_SILENT_INTERVALS recheck intervals. Events schedule an immediate check of their DID
(flows/index/transaction.py); other rows are checked periodically, at a limited rate.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import aiohttp
import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
import psycopg
from aiohttp.abc import AbstractResolver, ResolveResult
from psycopg import errors
from typing_extensions import override

from connectors.http.client import BodyTooLarge, HostRefused, NoSuchHost, Unreachable, fetch, open_session
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable, LookupResult, Resolver
from connectors.postgres.connection import connect_async
from connectors.runtime import metrics
from connectors.runtime.background_loop import Background
from protocol.did_document import ResolvedIdentity
from protocol.handle import (
    DomainAnswer,
    DomainResult,
    HandleStatus,
    HandleVerdict,
    from_txt,
    from_well_known,
    is_resolvable,
    joined,
    judge,
)
from protocol.handle import next_check as wait_of
from schemas.settings import Settings
from schemas.sql import queries

DNS_PORT = 53
DNS_SECONDS = 5.0
WEB_SECONDS = 8.0
MAX_BODY_BYTES = 64 * 1024
QUERIES_AT_ONCE = 100
"""Maximum number of domains that are queried at once; each query has a socket."""
BATCH_SECONDS = 3.0
IDLE_SECONDS = 2.0
WAIT_MAX_SECONDS = 15.0
WEB_SILENT_INTERVALS = 2.0  # recheck intervals after which a handle loses `verified` if its web host is unavailable
MAX_DETAIL = 300

log = logging.getLogger("handles")


def dns_client(settings: Settings) -> dns.asyncresolver.Resolver:
    """A client of SLUICE_HANDLE_DNS, or of the system's DNS servers. Raises NoResolverConfiguration."""
    server, _, port = settings.handle_dns.partition(":")
    made = dns.asyncresolver.Resolver(configure=not server)
    if server:
        made.nameservers, made.port = [server], int(port or DNS_PORT)
    return made


class HostAddresses(AbstractResolver):
    """Resolves the handles' web hosts at the same DNS server as their TXT records. The SSRF guard checks the addresses later."""

    def __init__(self, client: dns.asyncresolver.Resolver) -> None:
        self._client = client

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        try:
            found = await self._client.resolve_name(f"{host}.", family=family, lifetime=DNS_SECONDS)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as err:
            raise socket.gaierror(socket.EAI_NONAME, str(err)) from err
        except dns.exception.DNSException as err:
            raise socket.gaierror(socket.EAI_AGAIN, str(err)) from err
        return [
            ResolveResult(hostname=host, host=text, port=port, family=of, proto=0, flags=socket.AI_NUMERICHOST)
            for text, of in found.addresses_and_families()
        ]

    @override
    async def close(self) -> None:
        """Nothing to close."""


def open_handle_session(settings: Settings) -> aiohttp.ClientSession:
    """The session for `HandleResolver`. Call it in the event loop that uses the session.

    It keeps no connections: each handle is a host of its own, and is queried again a day later.
    """
    resolver = HostAddresses(dns_client(settings)) if settings.handle_dns else None
    return open_session(settings, resolver=resolver, reuse=False)


class HandleResolver:
    """Handle → DomainAnswer. For one event loop."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._dns: dns.asyncresolver.Resolver | None = None
        self._permits = asyncio.Semaphore(QUERIES_AT_ONCE)

    async def query(self, handle: str) -> DomainAnswer:
        """Query DNS, then HTTPS if DNS has no result. A failure is a DomainAnswer, not an exception."""
        if not is_resolvable(handle, own_network=self._settings.allow_private_hosts):
            return DomainAnswer(DomainResult.NOTHING, detail="names of this top-level domain cannot be owned")
        async with self._permits:
            found = await self._query_dns(handle)
            if found.result in (DomainResult.FOUND, DomainResult.AMBIGUOUS):
                return found
            return joined(found, await self._query_web(handle))

    async def _query_dns(self, handle: str) -> DomainAnswer:
        try:
            name = dns.name.from_text(f"_atproto.{handle}.")
            self._dns = self._dns or dns_client(self._settings)
            found = await self._dns.resolve(name, dns.rdatatype.TXT, lifetime=DNS_SECONDS)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return from_txt([])
        except dns.resolver.NoResolverConfiguration:
            return DomainAnswer(DomainResult.DNS_SILENT, detail="no DNS server is configured; set SLUICE_HANDLE_DNS")
        except (dns.name.NameTooLong, dns.name.LabelTooLong):
            return DomainAnswer(DomainResult.NOTHING, detail="too long for a DNS name")
        except (dns.exception.DNSException, OSError) as err:
            return DomainAnswer(DomainResult.DNS_SILENT, detail=f"DNS: {type(err).__name__}")
        return from_txt([b"".join(record.strings).decode("utf-8", "replace") for record in found])

    async def _query_web(self, handle: str) -> DomainAnswer:
        try:
            answer = await fetch(
                self._session,
                f"https://{handle}/.well-known/atproto-did",
                allow_private=self._settings.allow_private_hosts,
                limit=MAX_BODY_BYTES,
                total_seconds=WEB_SECONDS,
            )
        except (HostRefused, BodyTooLarge, NoSuchHost) as err:
            return DomainAnswer(DomainResult.NOTHING, detail=str(err))
        except Unreachable as err:
            return DomainAnswer(DomainResult.WEB_SILENT, detail=str(err))
        return from_well_known(answer.status, answer.body)


@dataclass(frozen=True, slots=True)
class _Due:
    """A DID to check. `asked`: the row's request number; if an event changes it during the check, the result is not stored."""

    did: str
    asked: int
    failures: int


@dataclass(frozen=True, slots=True)
class _Checked:
    due: _Due
    handle: str | None
    verdict: HandleVerdict


class HandleChecks:
    """Background work of the leader. `step` never blocks, and raises the error that ended the work (B8)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sql = queries("handle")
        self._background: Background | None = None

    def step(self, *, leads: bool) -> None:
        """Start the work if this process is the leader, stop it otherwise. Raises BackgroundDied."""
        if self._background is not None:
            self._background.check()
        if leads and self._background is None:
            self._background = Background("handles", self._run)
            self._background.start()
        elif not leads:
            self.close()

    def close(self) -> None:
        """Stop. Checks that are running stay due."""
        if self._background is not None:
            self._background.cancel()
            self._background = None

    async def _run(self) -> None:
        """Check batches until cancelled; wait while PostgreSQL is unavailable."""
        wait = IDLE_SECONDS
        async with open_session(self._settings) as session, open_handle_session(self._settings) as web:
            resolver, domains = Resolver(self._settings, session), HandleResolver(self._settings, web)
            try:
                while True:
                    try:
                        async with await connect_async(self._settings.database, "sluice handles") as db:
                            while True:
                                wait = IDLE_SECONDS
                                await self._batch(db, resolver, domains)
                    except psycopg.OperationalError as err:
                        log.warning("the database does not answer", extra={"error": str(err).strip()})
                        await asyncio.sleep(wait)
                        wait = min(wait * 2, WAIT_MAX_SECONDS)
            finally:
                await resolver.close()

    async def _batch(
        self, db: psycopg.AsyncConnection[tuple[Any, ...]], resolver: Resolver, domains: HandleResolver
    ) -> None:
        """Check due rows, as many as the rate allows, and sleep for the rest of the time."""
        rate, started = self._settings.handle_checks_per_second, time.monotonic()
        limit = max(1, int(rate * BATCH_SECONDS))
        due = [_Due(*row) for row in await (await db.execute(self._sql["due"], {"limit": limit})).fetchall()]
        if due:
            await self._settle(db, await self._check(due, resolver, domains))
        rest = len(due) / rate - (time.monotonic() - started)
        await asyncio.sleep(max(IDLE_SECONDS if len(due) < limit else 0.0, rest))

    async def _check(self, due: list[_Due], resolver: Resolver, domains: HandleResolver) -> list[_Checked]:
        for one in due:
            resolver.forget(one.did)  # an event may have made a cached "not found" wrong
        age = self._settings.tuning.identity_cache_seconds
        identities = await resolver.resolve_many([one.did for one in due], max_age=age)
        claimed = {one.handle for one in identities.values() if isinstance(one, ResolvedIdentity) and one.handle}
        # one query per handle, so that two DIDs that claim it get the same answer
        names = sorted(claimed)
        answers = dict(zip(names, await asyncio.gather(*(domains.query(name) for name in names)), strict=True))
        return [_checked(one, identities[one.did], answers) for one in due]

    async def _settle(self, db: psycopg.AsyncConnection[tuple[Any, ...]], checked: Collection[_Checked]) -> None:
        """Store the results in one transaction, in which previous owners lose their handle first: a handle has one owner."""
        settings = self._settings
        won = sorted((one.due.did, one.handle) for one in checked if one.verdict.status is HandleStatus.VERIFIED)
        elsewhere = [(one.verdict.owner, one.handle) for one in checked if one.verdict.owner is not None]
        values = {
            "dids": [one.due.did for one in checked],
            "asked": [one.due.asked for one in checked],
            "handles": [one.handle for one in checked],
            "standings": [str(one.verdict.status) for one in checked],
            "details": [one.verdict.detail[:MAX_DETAIL].replace("\0", "") or None for one in checked],
            "delays": [
                wait_of(
                    one.verdict.status,
                    one.due.failures,
                    one.due.did,
                    recheck=settings.handle_recheck_seconds,
                    retry=settings.tuning.handle_retry_seconds,
                )
                for one in checked
            ],
            "web_silent_seconds": WEB_SILENT_INTERVALS * settings.handle_recheck_seconds,
        }
        try:
            async with db.transaction():
                winners = {"dids": [did for did, _ in won], "handles": [handle for _, handle in won]}
                await db.execute(self._sql["release"], {**winners, "retry": settings.tuning.handle_retry_seconds})
                await db.execute(self._sql["settle"], values)
                asked = {"owners": [owner for owner, _ in elsewhere], "handles": [handle for _, handle in elsewhere]}
                await db.execute(self._sql["ask_owners"], asked)
        except (errors.UniqueViolation, errors.DeadlockDetected):  # with a concurrent leader or the index: all stay due
            metrics.HANDLE_CHECKS.labels("undone").inc(len(checked))
            return
        for one in checked:
            metrics.HANDLE_CHECKS.labels(str(one.verdict.status)).inc()


def _checked(due: _Due, identity: LookupResult, answers: dict[str, DomainAnswer]) -> _Checked:
    if isinstance(identity, IdentityUnreachable):
        return _Checked(due, None, HandleVerdict(HandleStatus.DIRECTORY_SILENT, detail=str(identity)))
    if isinstance(identity, IdentityNotFound):
        return _Checked(due, None, HandleVerdict(HandleStatus.NO_IDENTITY, detail=str(identity)))
    answer = answers.get(identity.handle) if identity.handle else None
    return _Checked(due, identity.handle, judge(due.did, identity.handle, answer))
