"""The statements of one index transaction: load and lock repos, write, read facts, save. All become visible at once, or none."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter
from typing import Any

from connectors.postgres.main_database import MainDatabase
from connectors.postgres.pg_array import array
from connectors.postgres.stored_forms import block_column
from connectors.runtime import metrics
from flows.index import stream_offsets
from flows.index.current_filter import Queues, admitted
from flows.index.projection import Connection
from flows.index.record_rows import RecordRows, unbase64
from flows.index.stream_offsets import Spans
from schemas import wire
from schemas.sql import queries
from steps.gate.batch import DatabaseFacts, WriteBatch
from steps.gate.filters import Filter
from steps.gate.model import Phase, Reason, Repo

SQL = queries("index") | {"end_attempts": queries("repo")["end_attempts"]}

REASONS = {*Reason, "takendown", "suspended", "deactivated", "desynchronized", "throttled", "inactive", "not_found"}
"""Reasons that may be metric labels: others are account statuses that an upstream is free to invent."""

SAVED = [
    *("did", "phase", "reason", "active", "status", "attempt", "rev", "seen_rev", "from_snapshot", "data", "commit"),
    *("account_time", "account_seq", "first_attempt", "buffered", "buffered_rev", "desyncs", "retry_count"),
    *("handle", "host", "signing_key", "retry_in", "left_out", "left_attempt", "left_filter", "buffered_bytes"),
    *("account_relay", "account_seen"),
]
"""Fields of the gate's `Repo` that are columns, but for `commit_block`."""

HEAD = ["did", "rev", "from_snapshot", "data", "commit"]
"""Those that `advance` writes: a live commit that fits changes no others."""

_beside_head = attrgetter(*(name for name in Repo.__struct_fields__ if name not in {*HEAD, "commit_block"}))


@dataclass(slots=True)
class IndexTransaction:
    """One transaction. The store calls the functions in `committed` after the commit."""

    db: Connection
    scope: Mapping[str, str]  # cluster and consumer group of the offsets
    filter: Filter  # fenced: it does not change before the transaction ends
    rows: RecordRows
    main: MainDatabase  # for what may be written twice
    lease_seconds: float  # of an attempt that a replayed log opened
    committed: list[Callable[[], None]] = field(default_factory=list)

    def admitted(self, queues: Queues) -> Queues:
        """The queues of repos within the network boundary."""
        return admitted(self.db, self.filter, queues)

    def lock(self, dids: Iterable[str]) -> dict[str, Repo]:
        """Lock and load these repos in DID order; insert rows for unknown ones."""
        wanted = sorted(set(dids))
        repos = self._load(wanted)
        if missing := [did for did in wanted if did not in repos]:
            self.db.execute(SQL["add_unknown"], {"dids": missing})
            repos |= self._load(missing, known=False)
        return repos

    def _load(self, dids: list[str], *, known: bool = True) -> dict[str, Repo]:
        rows = self.db.execute(SQL["lock"], {"dids": array(dids)}).fetchall()
        self.rows.repos |= {row[1]: row[0] for row in rows}
        return {row[1]: _repo(row[1:], known=known) for row in rows}

    def write(self, writes: WriteBatch) -> None:
        """Perform the writes, in the order of `WriteBatch`."""
        if writes.drop_buffered:
            self.db.execute(SQL["drop_buffered"], {"dids": sorted(writes.drop_buffered)})
        if writes.buffered:
            dids, offsets, buffered = zip(*writes.buffered, strict=True)
            values = {"dids": array(dids), "offsets": array(offsets), "revs": array([event.rev for event in buffered])}
            values |= {
                "events": array([wire.encode(event) for event in buffered]),
                "received": array([writes.buffered_at.get(key) for key in zip(dids, offsets, strict=True)]),
            }
            self.db.execute(SQL["buffer"], values)
        self.rows.write(writes)
        if writes.forget:
            self.main.execute(SQL["forget_identity"], {"dids": sorted(writes.forget)})
            self.main.execute(SQL["check_handles"], {"dids": sorted(writes.forget)})

    def facts(self, awaiting: Mapping[str, int], most_bytes: int) -> dict[str, DatabaseFacts]:
        """Facts for repos in `awaiting` (DID → attempt): at least one, and more while their buffered events fit in `most_bytes`."""
        if not awaiting:
            return {}
        sizes: dict[str, int] = dict(self.db.execute(SQL["buffered_sizes"], {"dids": list(awaiting)}).fetchall())
        totals = accumulate(sizes.get(did, 0) for did in awaiting)
        now = {
            did
            for number, (did, total) in enumerate(zip(awaiting, totals, strict=True))
            if not number or total <= most_bytes
        }
        awaiting = {did: attempt for did, attempt in awaiting.items() if did in now}
        counts = {did: self.rows.first[did][attempt] for did, attempt in awaiting.items() if did in self.rows.first}
        if uncounted := {self.rows.repos[did]: did for did in awaiting if did not in counts}:
            values = {"repos": list(uncounted), "attempts": [awaiting[did] for did in uncounted.values()]}
            counts |= {uncounted[repo]: rows for repo, rows in self.db.execute(SQL["count_rows"], values)}
        buffered: dict[str, list[Any]] = {}
        times: dict[str, dict[str, int | None]] = {}
        for did, event, rev, received in self.db.execute(SQL["buffered_events"], {"dids": list(awaiting)}):
            buffered.setdefault(did, []).append(wire.decode_live(event))
            times.setdefault(did, {})[rev] = received
        return {did: DatabaseFacts(counts.get(did, 0), buffered.get(did, ()), times.get(did, {})) for did in awaiting}

    def save(self, before: Mapping[str, Repo], after: Mapping[str, Repo]) -> None:
        """Write the repos that changed, and queue checks of their handles."""
        advanced: list[Repo] = []
        changed: list[tuple[Repo, Repo]] = []
        for did, new in after.items():
            if new == (old := before[did]):
                continue
            if _beside_head(new) == _beside_head(old):
                advanced.append(new)
            else:
                changed.append((old, new))
        if advanced:
            self.db.execute(SQL["advance"], _columns(advanced, HEAD))
        if not changed:
            return
        values = _columns([new for _, new in changed], SAVED)
        values["moved"] = array([old.phase != new.phase or new.retry_in is not None for old, new in changed])
        values["desynced"] = array([new.desync_age == 0.0 for _, new in changed])
        self._end_attempts(changed)
        self.db.execute(SQL["save"], {**values, "lease": self.lease_seconds})
        # a new handle; or an account that is active again, whose host may have denied the handle while it was not
        returned = {new.did for old, new in changed if new.active and not old.active}
        if claims := sorted({new.did for old, new in changed if new.handle != old.handle} | returned):
            self.main.execute(SQL["claim_handles"], {"dids": claims})
        for old, new in changed:
            if old.phase != new.phase:
                metrics.TRANSITIONS.labels(new.phase, _bounded(new.reason)).inc()
                metrics.REPOS_FAILED.inc(new.phase == Phase.FAILED)

    def _end_attempts(self, changed: Iterable[tuple[Repo, Repo]]) -> None:
        """History. A repo's first success gets its row when it leaves `sync` (keep_first_success): a first pass costs nothing."""
        left = [new for old, new in changed if old.phase == Phase.BACKFILL != new.phase]
        ended = [
            (new, outcome) for new in left if (outcome := _outcome(new)) != "synced" or new.first_attempt != new.attempt
        ]
        if ended:
            errors = [None if outcome == "synced" else repo.reason for repo, outcome in ended]
            values = {"dids": array([repo.did for repo, _ in ended]), "hosts": array([repo.host for repo, _ in ended])}
            values |= {"outcomes": array([outcome for _, outcome in ended]), "errors": array(errors)}
            self.db.execute(SQL["end_attempts"], values | {"uncounted_seconds": None})

    def labels(self, labels: Iterable[wire.LabelEvent]) -> int:
        """Upsert labels; returns how many distinct ones. The newest (cts, seq) wins."""
        newest: dict[tuple[str, str, str, str], wire.LabelEvent] = {}
        for label in labels:
            key = (label.src, label.uri, label.val, label.cid or "")
            if key not in newest or (label.cts, label.seq) > (newest[key].cts, newest[key].seq):
                newest[key] = label
        keys = sorted(newest)
        if not keys:
            return 0
        rows = [newest[key] for key in keys]
        srcs, uris, vals, cids = (list(column) for column in zip(*keys, strict=True))
        values = {"srcs": srcs, "uris": uris, "vals": vals, "cids": cids, "negs": [row.neg for row in rows]}
        values |= {"ctss": [row.cts for row in rows], "exps": [row.exp for row in rows]}
        values |= {"sigs": [row.sig for row in rows], "seqs": [row.seq for row in rows]}
        self.db.execute(SQL["label"], values)
        return len(rows)

    def move(self, spans: Spans) -> None:
        """Move the offsets past these spans. Raises PartitionLost."""
        stream_offsets.move(self.db, self.scope, spans)


def _columns(repos: Sequence[Repo], names: Iterable[str]) -> dict[str, str]:
    values = {name: array([getattr(repo, name) for repo in repos]) for name in names}
    return values | {"commit_block": array([_block(repo) for repo in repos])}


def _block(repo: Repo) -> bytes | None:
    block = unbase64(repo.commit_block)
    return None if block is None else block_column(block, repo.did, repo.rev, repo.data)


def _repo(row: tuple[Any, ...], *, known: bool) -> Repo:
    (did, phase, reason, active, status, attempt, rev, seen_rev, from_snapshot, data, commit, *more) = row
    (account_time, account_seq, first_attempt, buffered, buffered_rev, desyncs, desync_age, retry_count, *hints) = more
    handle, host, signing_key, left_out, left_attempt, left_filter, buffered_bytes, account_relay, account_seen = hints
    return Repo(
        did,
        phase=phase,
        reason=reason,
        active=active,
        status=status,
        attempt=attempt,
        rev=rev,
        seen_rev=seen_rev,
        from_snapshot=from_snapshot,
        data=data,
        commit=commit,
        account_time=account_time,
        account_seq=account_seq,
        account_relay=account_relay,
        account_seen=account_seen,
        first_attempt=first_attempt,
        buffered=buffered,
        buffered_rev=buffered_rev,
        desyncs=desyncs,
        desync_age=desync_age,
        retry_count=retry_count,
        handle=handle,
        host=host,
        signing_key=signing_key,
        left_out=left_out,
        left_attempt=left_attempt,
        left_filter=left_filter,
        buffered_bytes=buffered_bytes,
        known=known,
    )


def _outcome(repo: Repo) -> str:
    """How the attempt of a repo ended that has left the phase `backfill`. Only a repo in sync becomes desynchronized."""
    if repo.phase == Phase.SYNC or repo.reason == Reason.DESYNC:
        return "synced"
    return "unavailable" if repo.phase == Phase.UNAVAILABLE else "dropped"


def _bounded(reason: str | None) -> str:
    """A reason as a metric label of bounded cardinality."""
    return "" if reason is None else reason if reason in REASONS else "other"
