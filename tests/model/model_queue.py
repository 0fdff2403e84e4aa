"""The part of the model's database that the workers and control write: `connectors/postgres/repo_queue.py`."""

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from connectors.postgres.repo_queue import Claim, Discovery, ListedRepo
from protocol.account_status import TAKEN_DOWN, status_beside
from schemas import wire
from tests.model.model_filters import FilterRow
from tests.model.model_rows import GRACE, HOUR, HOURLY, LEASE, PDS, REAP_DELAY, REOPEN, TOPICS, Kernel, Row


class ModelQueue:
    """Rows by DID and the index's offsets."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.now = 0.0
        self.rows: dict[str, Row] = {}
        self.offsets = dict.fromkeys(TOPICS, 0)
        self.copy_fallbacks = 0
        self.filter = FilterRow()

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

    def renew(self, worker: str, held: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        mine = set()
        for did, attempt in held:
            row = self.rows[did]
            if (
                row.worker == worker
                and row.repo.attempt == attempt
                and row.repo.phase == "backfill"
                and row.produced is None
            ):
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

    # --- shared

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
