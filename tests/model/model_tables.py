"""The database of the gate's model: `connectors/postgres/repo_queue.py` and `flows/index/transaction.py` as a few dictionaries.

Each method mirrors the statement of its name in `schemas/sql/repo.sql` or `index.sql`, condition by condition
(`test_gate_sql.py` runs both side by side); a method is a transaction. Time is a number that the schedule moves.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from msgspec import structs

from tests.model.model_filters import TICK
from tests.model.model_queue import ModelQueue
from tests.model.model_rows import (
    Crash,
    PartitionLost,
    Row,
)


class ModelTables(ModelQueue):
    """The queue, the index's transaction, and the filter that control carries out."""

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
            row.repo = structs.replace(repo, desync_age=age, retry_in=None, known=True, commit_block=None)
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

    def _rules(self, *, replayed: bool) -> Any:
        made = self.filter.rules
        if replayed not in made:
            made[replayed] = replace(self.kernel.rules, replayed=replayed, filter=self.filter.filter)
        return made[replayed]
