"""`sluice audit`: does every row of the repos in sync match what their accounts signed?

Chunks of repos are checked in worker processes, and their results are taken in DID order. A whole audit (`--all`) that was stopped
resumes where it was: position, tally and findings are written together to `sluice.audit_run` and `sluice.audit_finding`.
"""

import asyncio
import json
import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from typing import Any

import psycopg

from connectors.atproto.repo_lookup import AuditNetwork, head_reader
from connectors.postgres.connection import connect, own_transaction
from connectors.postgres.repo_queue import repair
from connectors.postgres.shards import Shards
from control.audit_chunk import AuditChunk, check_chunk, close_connection
from ops.audit_report import AuditOptions, AuditReport, AuditScope, AuditTally, merged
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries
from steps.repo_audit import Finding, FindingKind

SQL = queries("audit")
PROGRESS_SECONDS = 2.0
AUDIT_KEY = 0x51_01_AD

Connection = psycopg.Connection[tuple[Any, ...]]


def audit(settings: Settings, scope: AuditScope, options: AuditOptions, progress: Callable[[str], None]) -> AuditReport:
    """Run to the end, one shard after the other. `progress` receives a line every two seconds. Raises psycopg.Error, OperatorError."""
    shards = Shards(settings, lambda one: one.database)
    dids = None if scope.dids is None else shards.split(scope.dids, str)
    reports = []
    for number, database in enumerate(shards.all()):
        own = scope if dids is None else replace(scope, dids=tuple(dids.get(number, ())))
        if own.dids != ():
            with connect(database, "sluice audit") as db:
                reports.append(asyncio.run(_Audit(settings, own, options, progress, db=db, database=database).run()))
    return merged(reports)


class _Audit:
    def __init__(
        self,
        settings: Settings,
        scope: AuditScope,
        options: AuditOptions,
        progress: Callable[[str], None],
        *,
        db: Connection,
        database: str,
    ) -> None:
        self._settings = settings
        self._database = database
        self._scope = scope
        self._options = options
        self._progress = progress
        self._db = db
        self._tally = AuditTally()
        self._findings: list[Finding] = []
        self._not_checked: dict[str, str] = {}
        self._run: int | None = None
        self._after = ""
        self._before = 0  # records of the tally that an earlier process counted
        self._total = 0
        self._reported_at = self._started = time.monotonic()

    async def run(self) -> AuditReport:
        """Check every chunk, then return the report."""
        resumed = self._resume() if self._scope == AuditScope() else False
        network = AuditNetwork(self._settings, head_reader(self._database))
        try:
            await self._check(network)
        finally:
            await network.close()
            close_connection(self._database)
        if self._run is not None:
            values = {"id": self._run, "tally": json.dumps(asdict(self._tally))}
            self._db.execute(SQL["finish_run"], values)
            rows = self._db.execute(SQL["findings"], {"run": self._run})
            self._findings = [Finding(did, FindingKind(kind), detail) for did, kind, detail in rows]
        return AuditReport(self._tally, self._findings, self._not_checked, time.monotonic() - self._started, resumed)

    async def _check(self, network: AuditNetwork) -> None:
        """Check chunks in the pool, a few ahead, and take the results in order."""
        options, loop = self._options, asyncio.get_running_loop()
        with _pool(options.workers) as pool:
            ahead: deque[tuple[list[str], asyncio.Future[AuditChunk]]] = deque()
            chunks = self._chunks()
            while True:
                while len(ahead) < 2 * options.workers and (dids := next(chunks, None)):
                    ahead.append((dids, loop.run_in_executor(pool, _checked, self._database, dids, options)))
                if not ahead:
                    return
                dids, future = ahead.popleft()
                await self._take(dids, await future, network)
                self._report_progress()

    def _chunks(self) -> Iterator[list[str]]:
        size = self._options.chunk
        if self._scope == AuditScope():
            row = self._db.execute(SQL["count_in_sync"], {"after": self._after}).fetchone()
            self._total = self._tally.repos + (int(row[0]) if row else 0)
            after = self._after
            while True:
                rows = self._db.execute(SQL["next_dids"], {"after": after, "limit": size}).fetchall()
                if not rows:
                    return
                after = rows[-1][0]
                yield [row[0] for row in rows]
        if self._scope.dids is None:
            rows = self._db.execute(SQL["sample"], {"limit": self._scope.sample}).fetchall()
            dids = sorted(row[0] for row in rows)
        else:
            dids = sorted(set(self._scope.dids))
            self._note_others(dids)
        self._total = len(dids)
        yield from (dids[at : at + size] for at in range(0, len(dids), size))

    def _note_others(self, dids: Sequence[str]) -> None:
        rows = self._db.execute(SQL["phases_of"], {"dids": list(dids)})
        known = {did: f"{phase} ({reason})" for did, phase, reason in rows}
        self._not_checked = {
            did: known.get(did, "not known") for did in dids if not known.get(did, "").startswith("sync ")
        }

    async def _take(self, dids: list[str], chunk: AuditChunk, network: AuditNetwork) -> None:
        """Add a chunk's results. A whole audit stores them together with its new position."""
        found = [finding for one in chunk.checked for finding in one.findings]
        unkept = sum(one.differing - len(one.findings) for one in chunk.checked)
        asked = [await network.signatures(chunk.unsigned)]
        if self._options.against_pds:
            asked.append(await network.commits(chunk.heads))
        found += [finding for answers in asked for finding in answers.findings]
        wrong = {finding.did for finding in found}
        tally = self._tally
        tally.repos += len(chunk.checked)
        unrooted = {one.did for one in chunk.checked if one.unrooted}
        tally.unrooted += len(unrooted)
        tally.proven += len(chunk.checked) - len(wrong | unrooted)
        tally.records += sum(one.records for one in chunk.checked)
        tally.bodies += sum(one.bodies for one in chunk.checked)
        tally.without_body += sum(one.without_body for one in chunk.checked)
        tally.compared += sum(answers.compared for answers in asked)
        tally.unanswered += sum(answers.unanswered for answers in asked)
        tally.differing += len(found) + unkept
        tally.kinds = dict(Counter(tally.kinds) + Counter(finding.kind.value for finding in found))
        with own_transaction(self._db):
            if wrong and self._options.repair:
                self._repair(wrong)
            if self._run is None:
                self._findings += found
                return
            for finding in found:
                self._db.execute(SQL["add_finding"], {"run": self._run, **asdict(finding)})
            values = {"id": self._run, "after": dids[-1], "tally": json.dumps(asdict(tally))}
            self._db.execute(SQL["advance_run"], values)

    def _repair(self, wrong: set[str]) -> None:
        """In the transaction that stores the findings, so a crash leaves both or neither."""
        fate = repair(self._db, sorted(wrong))
        self._tally.repaired += len(fate.repaired)
        self._tally.queued += len(fate.queued)
        self._tally.not_repaired |= fate.left

    def _resume(self) -> bool:
        """Resume the whole audit that was stopped, or start one. True if it was resumed."""
        if self._db.execute(SQL["only_one"], (AUDIT_KEY,)).fetchone() != (True,):
            raise OperatorError("an audit of all repos is already running; wait for it, or stop it")
        options = json.dumps({"bodies": self._options.bodies, "against_pds": self._options.against_pds})
        if self._options.restart:
            self._db.execute(SQL["abandon_runs"], {"options": options})
        row = self._db.execute(SQL["open_run"], {"options": options}).fetchone()
        if row is not None:
            self._run, self._after, tally = row
            known = {one.name for one in fields(AuditTally)}  # an older release may have had others
            self._tally = AuditTally(**{name: value for name, value in tally.items() if name in known})
            self._before = self._tally.records
            return bool(self._after)
        opened = self._db.execute(SQL["start_run"], {"options": options}).fetchone()
        if opened is None:
            raise OperatorError("the audit could not be stored; is the database read-only?")
        self._run = opened[0]
        return False

    def _report_progress(self) -> None:
        now = time.monotonic()
        if now - self._reported_at < PROGRESS_SECONDS:
            return
        self._reported_at = now
        tally, rate = self._tally, (self._tally.records - self._before) / (now - self._started)
        self._progress(
            f"audit: {tally.repos}/{self._total} repos, {tally.records} records ({rate:.0f}/s), {tally.differing} differ"
        )


def _pool(workers: int) -> Executor:
    """Worker processes; a single worker is a thread, which starts at once."""
    if workers == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _checked(database: str, dids: list[str], options: AuditOptions) -> AuditChunk:
    return check_chunk(database, dids, bodies=options.bodies)
