"""The database of the gate's model: `connectors/postgres/repo_queue.py` and `flows/index/transaction.py` as a few dictionaries.

Each method mirrors the statement of its name in `schemas/sql/repo.sql` or `index.sql`, condition by condition
(`test_gate_sql.py` runs both side by side); a method is a transaction. Time is a number that the schedule moves.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from connectors.postgres.repo_queue import Claim, Discovery, ListedRepo
from protocol.account_status import TAKEN_DOWN, status_beside
from schemas import wire
from steps.gate import batch as real_settle
from steps.gate import transitions as real_gate
from tests.model.model_filters import TICK, FilterRow

LEASE = 60.0
GRACE = 600.0
REOPEN = 3600.0
REAP_DELAY = 5.0
HOURLY = 10  # attempts of one repo in an hour at most
HOUR = 3600.0 - 1e-5  # PostgreSQL rounds to microseconds: what is an hour ago there is so here, too
PDS = "pds"  # in the DID document of every account
TOPICS = ("firehose_backfill", "firehose_live")


class Crash(Exception):
    """The process died in the middle of a transaction."""


class PartitionLost(Exception):
    """Another worker has moved the offsets."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The code under test: modules like steps.gate.transitions and steps.gate.batch (mutants bring their own), and the gate's limits."""

    gate: Any = real_gate
    settle: Any = real_settle
    rules: real_gate.Rules = field(
        default=real_gate.Rules(
            max_buffered=4, max_buffered_bytes=10, max_attempts=5, retry_first_seconds=5.0, retry_max_seconds=60.0
        )
    )


@dataclass(slots=True)
class Row:
    """A row of `sluice.repo` with its records (rkey → cid, rev, attempt, reason) and buffered events (offset → event)."""

    repo: Any
    host: str | None = None
    worker: str | None = None
    lease_until: float | None = None
    produced: int | None = None
    queued_at: float | None = None
    next_retry_at: float = 0.0
    stale_since: float | None = None
    listed_rev: str | None = None
    listed_since: float | None = None
    phase_since: float = 0.0
    completed_at: float | None = None
    desynced_at: float | None = None
    fetched: tuple[float, ...] = ()  # the newest attempts, as the table remembers them
    counted: tuple[float, ...] = ()  # all of them
    records: dict[str, tuple[str, str, int, str | None]] = field(default_factory=dict)
    buffered: dict[int, Any] = field(default_factory=dict)

    @property
    def min_rev(self) -> str:
        return self.repo.min_rev  # type: ignore[no-any-return]


class ModelTables:
    """Rows by DID and the index's offsets."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.now = 0.0
        self.rows: dict[str, Row] = {}
        self.offsets = dict.fromkeys(TOPICS, 0)
        self.copy_fallbacks = 0
        self.filter = FilterRow()

    # --- connectors/postgres/repo_queue.py

    def discover(self, listed: Sequence[ListedRepo]) -> Discovery:
        tasks = []
        known = []
        for entry in listed:
            if entry.did in self.rows:
                known.append(entry)
                continue
            phase = "pending" if entry.active else "unavailable"
            reason = "listed" if entry.active else entry.status or "inactive"
            repo = self.kernel.gate.Repo(
                entry.did,
                phase=phase,
                reason=reason,
                active=entry.active,
                status=status_beside(entry.active, entry.status),
                seen_rev=entry.rev,
                host=entry.host,
            )
            queued = self.now if entry.active else None
            row = self.rows[entry.did] = Row(repo, queued_at=queued, next_retry_at=self.now, phase_since=self.now)
            row.completed_at = None if entry.active else self.now
            if entry.active:
                tasks.append(wire.RepoTask(did=entry.did, attempt=0, reason="listed", rev=entry.rev or None))
        for entry in known:
            self._listed(self.rows[entry.did], entry)
        return Discovery(tasks, len(listed) - len(known), len(known))

    def _listed(self, row: Row, entry: ListedRepo) -> None:
        if row.repo.phase in ("sync", "backfill") and not entry.active and entry.status in TAKEN_DOWN:
            seen = max(row.repo.seen_rev, row.repo.buffered_rev)
            self._set(
                row,
                phase="unavailable",
                reason=entry.status,
                active=False,
                status=entry.status,
                seen_rev=seen,
                buffered=0,
                buffered_rev="",
            )
            row.buffered.clear()
            row.queued_at = row.lease_until = row.worker = row.produced = row.stale_since = None
            row.phase_since = row.completed_at = self.now
        if row.repo.phase == "sync" and row.repo.active and not entry.active:
            status = entry.status or "inactive"
            self._set(row, phase="pending", reason="deletion", active=False, status=status, retry_count=0)
            self._due_now(row)
        phase, ahead = row.repo.phase, entry.rev > row.min_rev
        if phase in ("sync", "backfill") and row.listed_since is None and ahead and entry.rev > row.repo.buffered_rev:
            row.listed_rev, row.listed_since = entry.rev, self.now
        if phase in ("pending", "failed", "unavailable") and ahead:
            self._set(row, seen_rev=entry.rev)
        only_listed = row.repo.attempt == 0 and row.repo.account_time == ""
        due = only_listed or row.phase_since < self.now - REOPEN
        known = row.repo.status not in TAKEN_DOWN and entry.host == PDS
        if phase == "unavailable" and entry.active and due and (entry.host is None or known):
            hidden = entry.host is not None and not row.repo.active
            reason, status = ("deletion", row.repo.status) if hidden else ("reopened", None)
            self._set(row, phase="pending", reason=reason, active=not hidden, status=status, retry_count=0)
            self._due_now(row)

    def claim(self, tasks: Sequence[wire.RepoTask], worker: str) -> list[Claim]:
        claims = []
        for did, attempt in sorted({(task.did, task.attempt) for task in tasks}):
            row = self.rows.get(did)
            if row is None or row.repo.attempt != attempt or row.repo.phase != "pending":
                continue
            if not (row.repo.active or row.repo.reason == "deletion") or row.next_retry_at > self.now:
                continue
            status = None if row.repo.active else row.repo.status
            self._set(row, phase="backfill", attempt=attempt + 1, buffered=0, buffered_rev="", status=status)
            row.lease_until, row.worker, row.produced = self.now + LEASE, worker, None
            row.phase_since, row.completed_at = self.now, None
            self._fetched(row)
            repo = row.repo
            ratchet = (repo.account_time, repo.account_seq)
            reported = "deactivation" if repo.reason == "deletion" and repo.status != "deleted" else repo.reason
            claims.append(
                Claim(
                    did,
                    repo.attempt,
                    row.min_rev,
                    repo.host,
                    reported,
                    *ratchet,
                    repo.retry_count,
                    repo.account_relay,
                    repo.account_seen,
                )
            )
        return claims

    def renew(self, worker: str, dids: Sequence[str]) -> set[tuple[str, int]]:
        mine = set()
        for did in dids:
            row = self.rows[did]
            if row.worker == worker and row.repo.phase == "backfill" and row.produced is None:
                row.lease_until = self.now + LEASE
                mine.add((did, row.repo.attempt))
        return mine

    def produced(self, did: str, attempt: int, offset: int) -> None:
        row = self.rows[did]
        if row.repo.attempt == attempt and row.repo.phase == "backfill":
            row.produced, row.lease_until = offset, None

    def retry(self, did: str, attempt: int, delay: float, *, counted: bool) -> str | None:
        row = self.rows[did]
        if row.repo.attempt != attempt or row.repo.phase != "backfill":
            return None
        return self._reopen(row, delay, counted=counted)

    def release_all(self, worker: str) -> int:
        mine = [r for r in self._in("backfill") if r.worker == worker and r.produced is None]
        for row in mine:
            self._reopen(row, 0.0, counted=False)
        return len(mine)

    def reap(self) -> dict[str, str]:
        expired = []
        for row in self._in("backfill"):
            lease = row.produced is None and row.lease_until is not None and row.lease_until < self.now
            passed = row.produced is not None and self.offsets["firehose_backfill"] > row.produced
            if lease or passed:
                expired.append(row)
        return {row.repo.did: self._reopen(row, REAP_DELAY, counted=True) for row in expired}

    def stale(self, did: str, attempt: int) -> str | None:
        row = self.rows[did]
        if row.repo.attempt != attempt or row.repo.phase != "backfill":
            return None
        if row.stale_since is None:
            row.stale_since = self.now
        elif row.stale_since < self.now - GRACE:
            self._set(row, rev="", seen_rev="")
        return row.min_rev

    def refetch(self, did: str, attempt: int) -> bool:
        row = self.rows[did]
        full = len(row.fetched) >= HOURLY and row.fetched[-HOURLY] + HOUR > self.now
        if row.repo.attempt != attempt or row.repo.phase != "backfill" or full:
            return False
        self._fetched(row)
        return True

    def due(self) -> list[wire.RepoTask]:
        tasks = []
        for row in self._in("pending"):
            claimable = row.repo.active or row.repo.reason == "deletion"
            if claimable and row.queued_at is None and row.next_retry_at <= self.now:
                if len(row.fetched) >= HOURLY and row.fetched[-HOURLY] + HOUR > self.now:
                    row.next_retry_at = row.fetched[-HOURLY] + 3600.0
                    continue
                row.queued_at = self.now
                tasks.append(wire.RepoTask(did=row.repo.did, attempt=row.repo.attempt, reason=row.repo.reason or "due"))
        return tasks

    def queued_long(self, before: float) -> list[tuple[str, int, float]]:
        return [
            (row.repo.did, row.repo.attempt, row.queued_at)
            for row in self._in("pending")
            if row.queued_at is not None and row.queued_at < before
        ]

    def unqueue(self, dids: Iterable[str]) -> None:
        for did in dids:
            if self.rows[did].repo.phase == "pending":
                self.rows[did].queued_at = None

    def lost_events(self) -> list[str]:
        lost = []
        for row in self.rows.values():
            if row.listed_since is None:
                continue
            assert row.listed_rev is not None
            if row.repo.phase not in ("sync", "backfill"):
                if row.listed_rev > row.min_rev:
                    self._set(row, seen_rev=row.listed_rev)
                row.listed_rev = row.listed_since = None
            elif row.listed_rev <= max(row.min_rev, row.repo.buffered_rev):
                row.listed_rev = row.listed_since = None
            elif row.repo.phase == "sync" and row.listed_since < self.now - GRACE:
                self._set(row, phase="pending", reason="lost_event", seen_rev=row.listed_rev)
                row.listed_rev = row.listed_since = None
                self._due_now(row)
                lost.append(row.repo.did)
        return lost

    def retry_failed(self) -> list[str]:
        failed = self._in("failed")
        for row in failed:
            self._set(row, phase="pending", reason="retry" if row.repo.active else "deletion", retry_count=0)
            row.lease_until = row.worker = row.stale_since = None
            self._due_now(row)
        return [row.repo.did for row in failed]

    # --- flows/index/transaction.py

    def index(
        self,
        queues: Mapping[str, Sequence[Any]],
        spans: Mapping[str, tuple[int, int]],
        *,
        crash: bool = False,
        replayed: bool = False,
    ) -> None:
        """One transaction. `crash`: the process dies before it commits. Raises PartitionLost when offsets have moved.

        `replayed`: by `sluice replay`, with rules of its own and no offsets.
        """
        rules = self._rules(replayed=replayed)
        rows = {did: self._locked(did) for did in sorted(queues)}
        before = {did: row.repo for did, row in rows.items()}
        settling = self.kernel.settle.settle(before, queues, rules)
        try:
            work = next(settling)
            while True:
                for did in {
                    *work.rows,
                    *work.drop_buffered,
                    *(h[0] for h in work.buffered),
                    *(d[0] for d in work.drop_rows),
                }:
                    self._write(rows[did], work)
                work = settling.send({did: self._facts(rows[did], n) for did, n in work.awaiting.items()})
        except StopIteration as end:
            for did, repo in end.value.items():
                self._save(rows[did], before[did], repo)
        for topic, (begin, _) in spans.items():
            if not self._may_move(topic, begin):
                raise PartitionLost
        if crash:
            raise Crash
        self.rows |= rows
        self.offsets |= {topic: end for topic, (_, end) in spans.items()}

    def lose(self, topic: str, start: int) -> None:
        """The log begins after our position."""
        self.offsets[topic] = start

    def _may_move(self, topic: str, begin: int) -> bool:
        return self.offsets[topic] == begin

    def _locked(self, did: str) -> Row:
        row = self.rows.get(did)
        if row is None:
            repo = self.kernel.gate.Repo(did, reason="discovered", known=False)
            return Row(repo, next_retry_at=self.now, phase_since=self.now)
        row = copy.copy(row)
        row.records, row.buffered = dict(row.records), dict(row.buffered)
        age = None if row.desynced_at is None else self.now - row.desynced_at
        repo = row.repo
        if repo.desync_age != age or repo.retry_in is not None or not repo.known or repo.commit_block is not None:
            row.repo = replace(repo, desync_age=age, retry_in=None, known=True, commit_block=None)
        return row

    def _write(self, row: Row, work: Any) -> None:
        did = row.repo.did
        if did in work.drop_buffered:
            row.buffered.clear()
        for buffered_did, offset, event in work.buffered:
            if buffered_did == did:
                row.buffered.setdefault(offset, event)
        for dropped, before in work.drop_rows:
            if dropped == did:
                row.records = {k: r for k, r in row.records.items() if before is not None and r[2] >= before}
        written = work.rows.get(did, {})
        if did in work.fresh and any(rkey in row.records for (_, rkey), r in written.items() if r is not None):
            self.copy_fallbacks += 1
        for (_, rkey), record in written.items():
            if record is None:
                row.records.pop(rkey, None)
            else:
                row.records[rkey] = (record[3], record[4], record[5], record[8])

    def _facts(self, row: Row, attempt: int) -> Any:
        count = sum(1 for record in row.records.values() if record[2] == attempt)
        return self.kernel.settle.DatabaseFacts(count, [row.buffered[offset] for offset in sorted(row.buffered)])

    def _save(self, row: Row, old: Any, new: Any) -> None:
        if old == new:
            return
        row.repo = new
        if new.desync_age == 0.0:
            row.desynced_at = self.now
        if new.retry_in is not None:
            row.next_retry_at = self.now + new.retry_in
        if new.phase in ("sync", "unavailable") or new.seen_rev > old.seen_rev:
            row.stale_since = None
        if old.phase != new.phase or new.retry_in is not None:
            row.queued_at = row.lease_until = row.worker = row.produced = None
            row.phase_since = self.now
            row.completed_at = self.now if new.phase in ("sync", "unavailable", "failed") else None

    # --- control/filter_changes.py

    def set_filter(self, collections: Sequence[str]) -> None:
        self.now += TICK
        self.filter.set(collections, self.now)

    def prune(self) -> None:
        self.filter.prune()

    def carry_out(self) -> None:
        """A step of control's walk: one repo is looked at, or one repo's rows outside are removed."""
        asked = self.filter
        if asked.walk_after is not None:
            row = self._next(asked.walk_after)
            if row is not None and row.repo.phase == "sync" and asked.older(row):
                self._set(row, phase="pending", reason="filter", retry_count=0)
                row.stale_since = None
                self._due_now(row)
            asked.walk_after = None if row is None else row.repo.did
        elif asked.prune_after is not None:
            row = self._next(asked.prune_after)
            if row is not None:
                self._prune(row)
            asked.pruned(None if row is None else row.repo.did)

    def _prune(self, row: Row) -> None:
        repo, version = row.repo, self.filter.filter.version
        gone = [record for rkey, record in row.records.items() if not self.filter.keeps(rkey)]
        row.records = {rkey: record for rkey, record in row.records.items() if self.filter.keeps(rkey)}
        count = sum(record[2] == repo.attempt for record in gone)
        if count and repo.phase == "backfill":
            of = 0 if repo.left and repo.left_filter != version else version  # 0: of several
            self._set(row, left_out=repo.left + count, left_attempt=repo.attempt, left_filter=of)

    def _next(self, after: str) -> Row | None:
        return next((row for did, row in sorted(self.rows.items()) if did > after), None)

    # --- shared

    def _rules(self, *, replayed: bool) -> Any:
        made = self.filter.rules
        if replayed not in made:
            made[replayed] = replace(self.kernel.rules, replayed=replayed, filter=self.filter.filter)
        return made[replayed]

    def _in(self, phase: str) -> list[Row]:
        return [row for _, row in sorted(self.rows.items()) if row.repo.phase == phase]

    def _reopen(self, row: Row, delay: float, *, counted: bool) -> str:
        repo = row.repo
        count = repo.retry_count + counted
        phase = "failed" if counted and count >= self.kernel.rules.max_attempts else "pending"
        seen = max(repo.seen_rev, repo.buffered_rev)
        if seen > repo.seen_rev:
            row.stale_since = None
        if not counted:
            row.fetched, row.counted = row.fetched[:-1], row.counted[:-1]
        self._set(row, phase=phase, retry_count=count, seen_rev=seen, buffered=0, buffered_rev="")
        row.buffered.clear()
        row.queued_at = row.lease_until = row.worker = row.produced = None
        row.next_retry_at, row.phase_since = self.now + delay, self.now
        row.completed_at = self.now if phase == "failed" else None
        return phase

    def _fetched(self, row: Row) -> None:
        row.fetched, row.counted = (*row.fetched, self.now)[-HOURLY:], (*row.counted, self.now)

    def _due_now(self, row: Row) -> None:
        row.next_retry_at = row.phase_since = self.now
        row.queued_at = row.completed_at = None

    def _set(self, row: Row, **changes: Any) -> None:
        if changes.get("seen_rev", "") > row.repo.seen_rev and row.repo.phase != "backfill":
            row.stale_since = None
        row.repo = replace(row.repo, **changes)
