"""`sluice audit`: is every row of the repos in sync what their accounts signed?

`audit(settings, scope, options, told) -> Report`. Chunks of repos are checked in processes of their own; results are
taken in DID order, so that a whole audit (`--all`) that was stopped goes on where it stood: position, tally and findings
are written together in `sluice.audit_run` and `sluice.audit_finding`.
"""

import asyncio
import json
import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg

from connectors.atproto.repo_lookup import AuditNetwork, head_reader
from connectors.postgres.connection import connect, own_transaction
from connectors.postgres.repo_queue import repair
from ops.audit_worker import Chunk, check_chunk, close_connection
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries
from steps.repo_audit import MEANING, Finding, FindingKind

SQL = queries("audit")
CHUNK_REPOS = 200
TOLD_SECONDS = 2.0
AUDIT_KEY = 0x51_01_AD

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Scope:
    """Which repos: these, or a sample of so many, or (both None) all that are in sync."""

    dids: tuple[str, ...] | None = None
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How. `bodies`: hash every record again; `restart`: do not go on with an audit that was stopped."""

    bodies: bool = True
    against_pds: bool = False
    repair: bool = False
    restart: bool = False
    workers: int = 1
    chunk: int = CHUNK_REPOS


@dataclass(slots=True)
class Tally:
    """Counts. `untold`: keys or PDSes that nobody would tell of; they are no difference, and no proof. `unrooted`: repos
    whose rows a collection filter thinned out, so that they rebuild no root; their records and commits were checked.
    With `repair`, each repo that differs is `repaired` (it will be fetched), `queued` (it was to be fetched already), or named
    in `not_repaired` with its phase.
    """

    repos: int = 0
    proven: int = 0
    records: int = 0
    bodies: int = 0
    without_body: int = 0
    compared: int = 0
    untold: int = 0
    unrooted: int = 0
    differing: int = 0
    repaired: int = 0
    queued: int = 0
    not_repaired: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """What an audit proved. `not_checked`: DID → phase of repos that were named and are not in sync."""

    tally: Tally
    findings: list[Finding]
    not_checked: dict[str, str]
    seconds: float
    resumed: bool = False

    @property
    def good(self) -> bool:
        return not self.tally.differing and not self.not_checked

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "good": self.good,
            **asdict(self.tally),
            "seconds": round(self.seconds, 2),
            "records_per_second": round(self.tally.records / max(self.seconds, 1e-9)),
            "resumed": self.resumed,
            "not_checked": self.not_checked,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def as_text(self) -> str:
        """For people."""
        tally = self.tally
        lines = [f"{one.did}  {one.kind}: {one.detail}" for one in self.findings]
        lines += [f"{did}  not checked: {phase}" for did, phase in self.not_checked.items()]
        lines += [f"{count} × {kind}: {MEANING[kind]}" for kind, count in sorted(tally.kinds.items())]  # type: ignore[index]  # a StrEnum's values
        lines.append(
            f"{tally.proven} of {tally.repos} repos are what their accounts signed; {tally.records} records,"
            f" {tally.bodies} of them hashed again, {tally.without_body} without a body; {self.seconds:.1f} s"
        )
        if tally.untold:
            lines.append(f"{tally.untold} keys or PDSes could not be asked")
        if tally.unrooted:
            lines.append(
                f"{tally.unrooted} repos have the rows of a collection filter only: their records and commits were checked,"
                " but rows that are left out prove no tree; --against-pds compares their commits with their PDSes"
            )
        if tally.repaired:
            lines.append(f"{tally.repaired} repos will be fetched again")
        if tally.queued:
            lines.append(f"{tally.queued} repos that differ are being fetched already")
        lines += [f"{did}  not repaired: {why}" for did, why in sorted(tally.not_repaired.items())]
        if tally.not_repaired:
            lines.append(
                f"{len(tally.not_repaired)} repos that differ cannot be fetched now; `sluice backfill retry` reopens failed ones,"
                " an account that comes back is fetched by itself"
            )
        return "\n".join(lines)


def audit(settings: Settings, scope: Scope, options: Options, told: Callable[[str], None]) -> Report:
    """Run to the end; `told` gets a progress line now and then. Raises psycopg.Error."""
    with connect(settings.database, "sluice audit") as db:
        return asyncio.run(_Audit(settings, scope, options, told, db).run())


class _Audit:
    def __init__(
        self, settings: Settings, scope: Scope, options: Options, told: Callable[[str], None], db: Connection
    ) -> None:
        self._settings = settings
        self._scope = scope
        self._options = options
        self._told = told
        self._db = db
        self._tally = Tally()
        self._findings: list[Finding] = []
        self._not_checked: dict[str, str] = {}
        self._run: int | None = None
        self._after = ""
        self._before = 0  # records of the tally that an earlier process counted
        self._total = 0
        self._told_at = self._started = time.monotonic()

    async def run(self) -> Report:
        """Every chunk, then the report."""
        resumed = self._resume() if self._scope == Scope() else False
        network = AuditNetwork(self._settings, head_reader(self._settings.database))
        try:
            await self._check(network)
        finally:
            await network.close()
            close_connection(self._settings.database)
        if self._run is not None:
            values = {"id": self._run, "tally": json.dumps(asdict(self._tally))}
            self._db.execute(SQL["finish_run"], values)
            rows = self._db.execute(SQL["findings"], {"run": self._run})
            self._findings = [Finding(did, FindingKind(kind), detail) for did, kind, detail in rows]
        return Report(self._tally, self._findings, self._not_checked, time.monotonic() - self._started, resumed)

    async def _check(self, network: AuditNetwork) -> None:
        """Chunks through the pool, a few ahead, taken in their order."""
        options, loop = self._options, asyncio.get_running_loop()
        with _pool(options.workers) as pool:
            ahead: deque[tuple[list[str], asyncio.Future[Chunk]]] = deque()
            chunks = self._chunks()
            while True:
                while len(ahead) < 2 * options.workers and (dids := next(chunks, None)):
                    ahead.append((dids, loop.run_in_executor(pool, _checked, self._settings.database, dids, options)))
                if not ahead:
                    return
                dids, future = ahead.popleft()
                await self._take(dids, await future, network)
                self._tell()

    def _chunks(self) -> Iterator[list[str]]:
        size = self._options.chunk
        if self._scope == Scope():
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
            self._name_others(dids)
        self._total = len(dids)
        yield from (dids[at : at + size] for at in range(0, len(dids), size))

    def _name_others(self, dids: Sequence[str]) -> None:
        rows = self._db.execute(SQL["phases_of"], {"dids": list(dids)})
        known = {did: f"{phase} ({reason})" for did, phase, reason in rows}
        self._not_checked = {
            did: known.get(did, "not known") for did in dids if not known.get(did, "").startswith("sync ")
        }

    async def _take(self, dids: list[str], chunk: Chunk, network: AuditNetwork) -> None:
        """Add a chunk's results; for a whole audit they become durable together with the position behind it."""
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
        tally.untold += sum(answers.unanswered for answers in asked)
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
        """In the transaction that makes their findings durable: a crash leaves both or neither."""
        fate = repair(self._db, sorted(wrong))
        self._tally.repaired += len(fate.repaired)
        self._tally.queued += len(fate.queued)
        self._tally.not_repaired |= fate.left

    def _resume(self) -> bool:
        """Find the whole audit that was stopped, or open one."""
        if self._db.execute(SQL["only_one"], (AUDIT_KEY,)).fetchone() != (True,):
            raise OperatorError("an audit of all repos runs already; wait for it, or end it")
        options = json.dumps({"bodies": self._options.bodies, "against_pds": self._options.against_pds})
        if self._options.restart:
            self._db.execute(SQL["abandon_runs"], {"options": options})
        row = self._db.execute(SQL["open_run"], {"options": options}).fetchone()
        if row is not None:
            self._run, self._after, tally = row
            self._tally = Tally(**tally)
            self._before = self._tally.records
            return bool(self._after)
        opened = self._db.execute(SQL["start_run"], {"options": options}).fetchone()
        if opened is None:
            raise OperatorError("the audit could not be written down; is the database read-only?")
        self._run = opened[0]
        return False

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told_at < TOLD_SECONDS:
            return
        self._told_at = now
        tally, rate = self._tally, (self._tally.records - self._before) / (now - self._started)
        self._told(
            f"audit: {tally.repos}/{self._total} repos, {tally.records} records ({rate:.0f}/s), {tally.differing} differ"
        )


def _pool(workers: int) -> Executor:
    """Processes of their own; a single worker is a thread, which begins at once."""
    if workers == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _checked(database: str, dids: list[str], options: Options) -> Chunk:
    return check_chunk(database, dids, bodies=options.bodies)
