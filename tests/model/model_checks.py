"""What must hold: after every step, after every batch of the index, and when everything has come to rest."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from schemas import wire
from steps.gate.model import Phase
from tests.model.model_filters import FilterRow
from tests.model.model_network import Account, data_of, records_of
from tests.model.model_rows import HOUR, HOURLY
from tests.model.model_state import State
from tests.model.model_tables import ModelTables


class Checks(State):
    """The invariants."""

    __slots__ = ()

    def check(self) -> None:
        for topic, offset in self.tables.offsets.items():
            if offset < self.moved[topic]:
                self.fail(f"the offset of {topic} went back from {self.moved[topic]} to {offset}")
            self.moved[topic] = offset
        for did, row in self.tables.rows.items():
            repo = row.repo
            if repo.attempt < self.attempts[did]:
                self.fail(f"{did}: the attempt fell from {self.attempts[did]} to {repo.attempt}")
            self.attempts[did] = repo.attempt
            if repo.seen_rev > self.raised[did] or repo.phase == Phase.SYNC:
                self.stale_since.pop(did, None)
            self.raised[did] = repo.seen_rev
            match repo.phase:
                case Phase.SYNC:
                    self.check_sync(did, row, self.tables.filter)
                case Phase.BACKFILL:
                    if row.lease_until is None and row.produced is None:
                        self.fail(f"{did}: in backfill, and nothing will end it")
                    if repo.buffered < len(row.buffered):
                        self.fail(f"{did}: {len(row.buffered)} buffered events, counted {repo.buffered}")
                case Phase.PENDING:
                    if not repo.active and repo.reason != "deletion":
                        self.fail(f"{did}: pending for {repo.reason!r}, but no claim takes it")
            if sum(at + HOUR > self.tables.now for at in row.counted) > HOURLY:
                self.fail(f"{did}: fetched more than {HOURLY} times in an hour: {row.counted}")
            if (
                repo.phase == Phase.PENDING
                and len(row.fetched) == HOURLY
                and row.fetched[0] + 3600.0 == row.next_retry_at
            ):
                self.fired["deferred by the hour's limit"] += 1
            if repo.active and repo.status not in (None, "throttled", "desynchronized"):
                self.fail(f"{did}: active, and {repo.status}")
            if row.buffered and repo.phase != Phase.BACKFILL:
                self.fail(f"{did}: buffered events in phase {repo.phase}")
            self.check_deleted(did, row)
            if max(repo.rev, repo.seen_rev, repo.buffered_rev) < self.seen[did]:
                self.fail(f"{did}: seen of {self.seen[did]}, and forgot it: {self.show(did)}")
            if max(repo.rev, repo.seen_rev, repo.buffered_rev, row.listed_rev or "") < self.listed[did]:
                self.fail(f"{did}: listed at {self.listed[did]}, and forgotten: {self.show(did)}")

    def check_deleted(self, did: str, row: Any) -> None:
        if row.repo.reason == "deleted" and row.repo.phase == Phase.UNAVAILABLE and row.records:
            self.fail(f"{did}: deleted, with rows {sorted(row.records)}")

    def check_sync(self, did: str, row: Any, asked: FilterRow) -> None:
        repo, account = row.repo, self.network.accounts[did]
        if not repo.active:
            self.fail(f"{did}: in sync and inactive")
        if (repo.rev, repo.data) not in account.signed:
            self.fail(f"{did}: in sync at a commit that was never signed: {repo.rev} {repo.data}")
        if any(record[3] == "missing_block" for record in row.records.values()):
            self.fail(f"{did}: in sync with a row whose record never came: {row.records}")
        rows = {rkey: record[0] for rkey, record in row.records.items()}
        root = data_of(rows)
        if root != repo.data:
            true = records_of(repo.data)
            lacking = asked.kept(true).keys() - rows.keys()
            if not rows.items() <= true.items() or (lacking and not asked.awaits(row)):
                self.fail(f"{did}: in sync at {repo.rev} with rows {root!r}, but its root is {repo.data!r}")
        if asked.filter.clean and asked.kept(rows) != rows:
            self.fail(f"{did}: rows outside of {asked.filter} although it is clean: {root!r}")

    def check_transition(self, before: Any, did: str, messages: Iterable[Any]) -> None:
        repo = self.tables.rows[did].repo
        outcomes = sum(isinstance(message.event, wire.RepoOutcome) for message in messages)
        phase = Phase.PENDING if before is None else before.phase
        if phase == Phase.BACKFILL and not outcomes and repo.reason == "desync" and repo.phase == Phase.PENDING:
            self.fail(f"{did}: a live event ended its backfill")
        if repo.desyncs - (0 if before is None else before.desyncs) > outcomes + (phase == Phase.SYNC):
            self.fail(f"{did}: paid for {repo.desyncs} desyncs at once")
        if repo.desyncs and not self.disturbed:
            self.fail(f"{did}: desync of a chain that nothing has disturbed")
        if repo.reason == "incomplete" and not any(self.log_start.values()):
            self.fail(f"{did}: a complete snapshot was refused")

    def outside(self, did: str) -> set[str]:
        """rkeys of this repo's rows outside of the filter."""
        asked = self.tables.filter
        return set() if asked.filter.clean else {k for k in self.tables.rows[did].records if not asked.keeps(k)}

    def check_outside(self, before: Any, did: str, outside: set[str], messages: Iterable[Any]) -> None:
        """Of a repo that stays in sync, the rows outside that a batch removed are those that it changed; none comes."""
        row = self.tables.rows[did]
        if row.repo.reason == "filter" and before.reason != "filter":
            self.fired["attempt under two filters"] += 1
        if before is None or (before.phase, row.repo.phase) != (Phase.SYNC, Phase.SYNC):
            return
        changed = {op.rkey for m in messages if isinstance(m.event, wire.CommitEvent) for op in m.event.ops}
        left = self.outside(did)
        if left - outside or outside - left - changed:
            self.fail(f"{did}: rows outside were {sorted(outside)}, now {sorted(left)}, changed {sorted(changed)}")

    def check_truth(self) -> None:
        for did, account in self.network.accounts.items():
            row = self.tables.rows.get(did)
            if row is None:
                continue
            rows = {rkey: record[0] for rkey, record in row.records.items()}
            kept, true = self.tables.filter.kept, account.head.records
            if account.active and not (kept(rows) == kept(true) and rows.items() <= true.items()):
                self.fail(f"{did}: rows {data_of(rows)!r}, truth {account.head.data!r}, {self.tables.filter.filter}")
            if row.repo.active != account.active:
                self.fail(f"{did}: active is {row.repo.active}, but the account is {account.state}")
            if row.repo.phase == Phase.SYNC and row.repo.status not in (None, account.status):
                self.fail(f"{did}: {row.repo.status}, but the account is {account.state}")
            if self.told_deleted(account) and rows:
                self.fail(f"{did}: deleted, but rows are left: {data_of(rows)!r}")

    def told_deleted(self, account: Account) -> bool:
        """The last news of the account is its true deletion."""
        news = [event for event in self.live if isinstance(event, wire.AccountEvent) and event.did == account.did]
        return bool(
            account.state == "deleted" and news and max(news, key=lambda e: (e.time, e.seq)).status == "deleted"
        )

    def check_replays(self) -> None:
        """Every topic from 0 into this database, and the whole log into an empty one (G2)."""
        for topic in ("firehose_backfill", "firehose_live"):
            self.replay(topic, self.log_start[topic])
            self.check()
        if not any(self.log_start.values()):
            self.check_replay_all()
            self.check_replay_together()

    def check_replay_all(self) -> None:
        mirror = self.empty()
        positions = dict.fromkeys(("firehose_backfill", "firehose_live"), 0)
        for topic, log in (("firehose_backfill", self.backfill), ("firehose_live", self.live)):
            while positions[topic] < len(log):
                queues, spans = self.batch({topic: positions[topic]}, {topic: self.rng.randint(1, 30)})
                mirror.index(queues, spans)
                positions[topic] = spans[topic][1]
            if topic == "firehose_backfill":
                self.check_newest_attempts(mirror)
        for did, row in mirror.rows.items():
            self.check_deleted(did, row)
            if row.repo.phase == Phase.SYNC:
                self.check_sync(did, row, mirror.filter)
        for did, row in self.tables.rows.items():
            if row.repo.phase == Phase.SYNC and not self.network.accounts[did].forged:
                self.compare(did, row, mirror)

    def check_newest_attempts(self, mirror: Any) -> None:
        """After all attempts: a repo in sync at its snapshot is so in the mirror too, whatever was forged."""
        for did, row in self.tables.rows.items():
            if row.repo.phase == Phase.SYNC and row.repo.from_snapshot:
                self.compare(did, row, mirror, status=False)

    def check_replay_together(self) -> None:
        """Both topics at once into an empty database: not all need reach sync, but none that does is wrong."""
        mirror = self.empty()
        positions = dict.fromkeys(("firehose_backfill", "firehose_live"), 0)
        while positions["firehose_backfill"] < len(self.backfill) or positions["firehose_live"] < len(self.live):
            queues, spans = self.batch(positions, {topic: self.rng.randint(0, 12) for topic in positions})
            mirror.index(queues, spans)
            positions |= {topic: end for topic, (_, end) in spans.items()}
            for did, row in mirror.rows.items():
                if row.repo.phase == Phase.SYNC:
                    self.check_sync(did, row, mirror.filter)
                if row.repo.buffered != len(row.buffered):
                    self.fail(f"{did}: {len(row.buffered)} buffered events, counted {row.repo.buffered}")

    def empty(self) -> ModelTables:
        """Another database, with the filter of this one or with none."""
        mirror = ModelTables(self.kernel)
        if self.rng.random() < 0.5:
            mirror.filter = FilterRow(replace(self.tables.filter.filter, version=7, clean=True))
        return mirror

    def compare(self, did: str, row: Any, mirror: ModelTables, *, status: bool = True) -> None:
        """Equal but for rows outside of this database's filter: of them it has those that it had before."""
        copy = mirror.rows[did]

        def facts(one: Any) -> Any:
            repo = one.repo
            records = {
                rkey: (cid, rev) for rkey, (cid, rev, *_) in one.records.items() if self.tables.filter.keeps(rkey)
            }
            return repo.phase, repo.active, repo.status if status else None, repo.rev, repo.data, records

        if facts(row) != facts(copy):
            self.fail(f"{did}: the whole log replayed gives {facts(copy)}, live {facts(row)}")

    def replay(self, topic: str, begin: int) -> None:
        log = self.backfill if topic == "firehose_backfill" else self.live
        before = {did: (row.repo, dict(row.records), dict(row.buffered)) for did, row in self.tables.rows.items()}
        queues: dict[str, list[Any]] = defaultdict(list)
        for offset in range(begin, self.tables.offsets[topic]):
            queues[log[offset].did].append(self.kernel.settle.OffsetEvent(offset, log[offset]))
        # What a PDS took back may fit again on what it kept: such a replay is the operator's to want.
        queues = {did: messages for did, messages in queues.items() if not self.network.accounts[did].went_back}
        if not queues:
            return
        self.fired["replay"] += 1
        self.say("replay", topic, "from", begin)
        self.tables.index(queues, {}, replayed=True)
        for did, (repo, records, buffered) in before.items():
            row = self.tables.rows[did]
            brought = self.brought_by(repo, records, row.records) if self.lacks(repo) else set()
            rows = {rkey: record for rkey, record in row.records.items() if rkey not in brought}
            kept = {rkey: record for rkey, record in records.items() if rkey not in brought}
            if (rows, row.buffered) != (kept, buffered) or self.facts(row.repo) != self.facts(repo):
                self.fail(f"a replay of {topic} from {begin} changed {did}: {repo} {records} -> {self.show(did)}")

    def brought_by(self, repo: Any, before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        """rkeys of rows of the open attempt that are new, or replace a row of an earlier one."""
        return {
            rkey for rkey, row in after.items() if row[2] == repo.attempt and before.get(rkey, (0, 0, 0))[2] != row[2]
        }

    def lacks(self, repo: Any) -> bool:
        """Whether an open attempt lacks rows because of another filter: a replay may bring them, and its outcome cannot count."""
        return bool(
            repo.phase == Phase.BACKFILL and repo.left and repo.left_filter != self.tables.filter.filter.version
        )

    def facts(self, repo: Any) -> Any:
        """What a replay must leave as it is, in any phase; first_attempt may learn that an attempt had rows."""
        ours = (
            repo.phase,
            repo.reason,
            repo.attempt,
            repo.rev,
            repo.seen_rev,
            repo.data,
            repo.buffered,
            repo.buffered_rev,
        )
        return ours, (
            repo.active,
            repo.status,
            repo.handle,
            repo.account_time,
            repo.account_seq,
            repo.account_relay,
            repo.desyncs,
        )
