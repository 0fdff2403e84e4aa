"""Lookups for an audit: a repo's current signing key, and its newest commit at its PDS. For one event loop."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from connectors.atproto.rate_budget import HostBudget, HostPaused
from connectors.http.client import SMALL_JSON, HostRefused, Unreachable, fetch, open_session, retry_after
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable, Resolver
from connectors.postgres.connection import connect
from protocol.encoding.bounded_json import BadJson
from protocol.encoding.safe_text import printable
from schemas.settings import Settings
from schemas.sql import queries
from steps.repo_audit import Finding, FindingKind, StoredHead, check_commit
from steps.retry import LONGEST_PAUSE, SHORTEST_PAUSE

LATEST = "com.atproto.sync.getLatestCommit"
AT_ONCE = 20
CATCH_UP_SECONDS = 15.0
RECHECK_SECONDS = 0.5

ReadHead = Callable[[str], tuple[str, str | None] | None]
"""DID → current (rev, commit) of its row; None if it is not in `sync`."""


@dataclass(slots=True)
class LookupResult:
    """Findings, number of repos compared, and of repos without an answer (not a finding)."""

    findings: list[Finding] = field(default_factory=list)
    compared: int = 0
    unanswered: int = 0


class AuditNetwork:
    """One per audit. Connects on first use; `close` it in its loop."""

    def __init__(self, settings: Settings, read_head: ReadHead) -> None:
        self._settings = settings
        self._read_head = read_head
        self._session = open_session(settings)
        self._resolver = Resolver(settings, self._session)
        self._budget = HostBudget(settings)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def close(self) -> None:
        await self._budget.close()
        await self._resolver.close()
        await self._session.close()

    async def signatures(self, heads: list[StoredHead]) -> LookupResult:
        """Check commits against the current keys, after the stored keys did not match. A directory outage is not a finding."""
        result = LookupResult()
        await asyncio.gather(*(self._signature(head, result) for head in heads))
        return result

    async def commits(self, heads: list[StoredHead]) -> LookupResult:
        """Compare rows with the newest commits at the PDSes."""
        result = LookupResult()
        await asyncio.gather(*(self._commit(head, result) for head in heads))
        return result

    async def latest(self, did: str) -> tuple[str, str] | str | None:
        """(rev, commit), or the reason why the PDS has none, or None without an answer."""
        try:
            pds = (await self._resolver.resolve(did)).pds
            if pds is None:
                return "the DID document names no PDS"
            await self._budget.acquire(pds)
            private = self._settings.allow_private_hosts
            answer = await fetch(self._session, f"{pds}/xrpc/{LATEST}", {"did": did}, allow_private=private)
        except IdentityNotFound as err:
            return str(err)
        except (IdentityUnreachable, HostPaused, HostRefused, Unreachable):
            return None
        if answer.status == 429:  # pause the host for all processes, as downloads do
            wait = retry_after(answer.headers, time.time())
            pause = self._settings.tuning.rate_limit_pause_seconds if wait is None else wait
            await self._budget.pause(pds, min(max(pause, SHORTEST_PAUSE), LONGEST_PAUSE), f"{LATEST} answered 429")
            return None
        if answer.status != 200:
            return f"its PDS answers {answer.error}" if answer.error and answer.status in (400, 403, 404) else None
        try:
            body = answer.json(SMALL_JSON)
        except BadJson:
            return None
        rev, commit = (body.get("rev"), body.get("cid")) if isinstance(body, dict) else (None, None)
        if not isinstance(rev, str) or not isinstance(commit, str):
            return None
        return printable(rev, 100), printable(commit, 100)

    async def _signature(self, head: StoredHead, result: LookupResult) -> None:
        try:
            async with self._turns:
                key = (await self._resolver.resolve(head.did, fresh=True)).signing_key
        except IdentityNotFound:
            key = None
        except IdentityUnreachable:
            result.unanswered += 1
            return
        result.findings += check_commit(head, key)

    async def _commit(self, head: StoredHead, result: LookupResult) -> None:
        async with self._turns:
            answer = await self.latest(head.did)
        if answer is None:
            result.unanswered += 1
            return
        result.compared += 1
        if isinstance(answer, str):
            result.findings.append(Finding(head.did, FindingKind.PDS, answer))
            return
        waited = 0.0
        while (here := await asyncio.to_thread(self._read_head, head.did)) is not None:
            rev, commit = answer
            if here == answer:
                return
            if waited >= (CATCH_UP_SECONDS if rev > here[0] else 2 * RECHECK_SECONDS):
                why = f"its PDS is at rev {rev}, commit {commit}; the row at rev {here[0]}, commit {here[1]}"
                result.findings.append(Finding(head.did, FindingKind.PDS, why))
                return
            await asyncio.sleep(RECHECK_SECONDS)
            waited += RECHECK_SECONDS
            if rev <= here[0] and isinstance(again := await self.latest(head.did), tuple):
                answer = again  # the row may be newer than the PDS's answer


def head_reader(database: str) -> ReadHead:
    """A ReadHead that opens a connection for each call, as few repos need it."""

    def read_head(did: str) -> tuple[str, str | None] | None:
        with connect(database, "sluice audit") as db:
            row: Any = db.execute(queries("audit")["stored_head"], {"did": did}).fetchone()
        return None if row is None else (row[0], row[1])

    return read_head
