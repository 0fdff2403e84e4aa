"""The index transaction: repos locked and loaded, rounds of writes in bulk, offsets moved with them, one commit.

`Tables.transaction()` gives a `Unit`; everything in it becomes visible at once or not at all. The offsets are conditional
on where they stood: whoever lost a partition meanwhile gets `PartitionLost` and nothing of his is committed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import psycopg
from psycopg import errors

from appview.changes import Changes, Key
from appview.edits import note_changed, passed
from appview.state import is_active
from appview.writer import Projection
from connectors.kafka.log import Part
from connectors.postgres.connection import own_transaction, tuples
from connectors.postgres.pg_array import array
from connectors.runtime import metrics
from flows.index.current_filter import CurrentFilter, Queues, admitted
from protocol.encoding.unpadded_base64 import from_base64
from schemas import wire
from schemas.settings import Settings
from schemas.sql import queries
from steps.gate.batch import Facts, Round, Row
from steps.gate.filters import Filter
from steps.gate.model import Phase, Reason, Repo

SQL = queries("index")
COPY_TYPES = ["text", "text", "text", "text", "text", "int4", "bytea", "bytea", "text", "text", "int8"]
"""Binary COPY of a `Row`: json travels as its bytes (in binary form they are the same), raw as bytes."""

RETURNING = b" returning r.did, r.collection, r.rkey, r.came"

REASONS = {*Reason, "takendown", "suspended", "deactivated", "desynchronized", "throttled", "inactive", "not_found"}

SAVED = [
    *("did", "phase", "reason", "active", "status", "attempt", "rev", "heard_rev", "from_snapshot", "data", "commit"),
    *("account_time", "account_seq", "first_attempt", "held", "held_rev", "desyncs", "retry_count"),
    *("handle", "host", "signing_key", "retry_in", "left_out", "left_attempt", "left_filter", "held_bytes"),
    *("account_relay", "account_seen"),
]
"""Fields of the gate's `Repo` that are columns as they are."""

Connection = psycopg.Connection[tuple[Any, ...]]


class PartitionLost(Exception):
    """Another worker has moved this partition's offset: this process must not go on with it."""


class PositionAheadOfLog(Exception):
    """The stored position lies behind the end of the log: another log, or one that lost data. Never a silent reset."""


class Tables:
    """The index's connection to PostgreSQL. Connects on first use, and again after a lost connection.

    `group`: whose offsets are moved; a replay has its own.
    """

    def __init__(self, settings: Settings, cluster: str, group: str = "index") -> None:
        self._settings = settings
        self._scope = {"cluster": cluster, "group": settings.group(group)}
        self._database = tuples(settings, "sluice index", opened=self._opened)
        self.close = self._database.close
        self._filter = CurrentFilter()
        self._appview = False  # as the database says it: a replay has to keep up what the index keeps up

    def _opened(self, db: Connection) -> None:
        db.execute(SQL["make_stage"])
        self._appview = is_active(db)

    @contextmanager
    def transaction(self, *, singly: bool = False, within: bool = False) -> Iterator["Unit"]:
        """One transaction of the index, READ COMMITTED; what it did is told after its commit.

        `within` another one it is a savepoint, which alone is undone where it raises.
        The AppView's tables follow at its end; `singly`: a record that only they refuse costs nothing but itself.
        """
        db = self._database()
        with db.transaction() if within else own_transaction(db):
            unit = Unit(db, self._scope, self._filter.read(db), Changes() if self._appview else None, staged=within)
            yield unit
            if unit.changes:
                Projection(db).write(unit.changes, singly=singly)
        for tell in unit.committed:
            tell()

    def starts(self, marks: Mapping[Part, tuple[int, int]]) -> dict[Part, int]:
        """Where to read each partition, given (log start, log end). Raises PositionAheadOfLog."""
        topics, parts = [part[0] for part in marks], [part[1] for part in marks]
        values = {**self._scope, "topics": topics, "parts": parts}
        db = self._database()
        with own_transaction(db):
            lows = [low for low, _ in marks.values()]
            new = db.execute(SQL["start_offsets"], {**values, "nexts": lows}).fetchall()
            if new:
                topic = self._settings.topic("firehose_backfill")
                gone = {"topics": [row[0] for row in new], "parts": [row[1] for row in new], "backfill": topic}
                db.execute(SQL["change_log"], {**self._scope, **gone})
            rows = db.execute(SQL["offsets"], values).fetchall()
            starts = {(topic, part): at for topic, part, at in rows}
            lost: dict[Part, int] = {}
            for part, at in starts.items():
                low, high = marks[part]
                if at > high:
                    raise PositionAheadOfLog(
                        f"{part[0]}/{part[1]}: the database has read up to {at}, but the log ends at {high}; this is another"
                        " log or it lost data. Restore it, or start over with `sluice cursors reset` and a fresh database"
                    )
                if at < low:
                    lost[part] = low
            if lost:
                gone = {"topics": [p[0] for p in lost], "parts": [p[1] for p in lost], "nexts": list(lost.values())}
                db.execute(SQL["lose_offsets"], {**self._scope, **gone})
        return starts | lost


@dataclass(slots=True)
class Unit:
    """The statements of one index transaction."""

    db: Connection
    scope: dict[str, str]
    filter: Filter  # what is mirrored, until the transaction ends
    changes: Changes | None = None  # for the AppView
    staged: bool = False  # rows of an earlier round stand in the stage
    committed: list[Callable[[], None]] = field(default_factory=list)  # to be called when all of it stands

    def admitted(self, queues: Queues) -> Queues:
        """The queues of repos within the network boundary."""
        return admitted(self.db, self.filter, queues)

    def lock(self, dids: Iterable[str]) -> dict[str, Repo]:
        """Lock and load these repos in DID order; unknown ones get a row first."""
        wanted = sorted(set(dids))
        repos = self._load(wanted)
        if missing := [did for did in wanted if did not in repos]:
            self.db.execute(SQL["add_unknown"], {"dids": missing})
            repos |= self._load(missing, known=False)
        return repos

    def _load(self, dids: list[str], *, known: bool = True) -> dict[str, Repo]:
        rows = self.db.execute(SQL["lock"], {"dids": array(dids)})
        return {row[0]: _repo(row, known=known) for row in rows}

    def write(self, work: Round) -> None:
        """Perform the writes of a round, in its order."""
        if work.drop_held:
            self.db.execute(SQL["drop_held"], {"dids": sorted(work.drop_held)})
        if work.held:
            dids, offsets, held = zip(*work.held, strict=True)
            values = {"dids": array(dids), "offsets": array(offsets), "revs": array([event.rev for event in held])}
            values |= {
                "events": array([wire.encode(event) for event in held]),
                "received": array([work.held_at.get(key) for key in zip(dids, offsets, strict=True)]),
            }
            self.db.execute(SQL["hold"], values)
        if work.drop_rows:
            dids, befores = zip(*sorted(work.drop_rows, key=lambda drop: drop[0]), strict=True)
            self._delete("drop_rows", {"dids": list(dids), "befores": list(befores)}, {})
        self._write_rows(work)
        if work.forget:
            self.db.execute(SQL["forget_identity"], {"dids": sorted(work.forget)})
            self.db.execute(SQL["check_handles"], {"dids": sorted(work.forget)})

    def facts(self, awaiting: Mapping[str, int], most_bytes: int) -> dict[str, Facts]:
        """Rows of the attempt and held events of repos whose outcome comes next: as many as `most_bytes` allow, at least one."""
        if not awaiting:
            return {}
        sizes: dict[str, int] = dict(self.db.execute(SQL["held_sizes"], {"dids": list(awaiting)}).fetchall())
        totals = accumulate(sizes.get(did, 0) for did in awaiting)
        now = {
            did
            for number, (did, total) in enumerate(zip(awaiting, totals, strict=True))
            if not number or total <= most_bytes
        }
        awaiting = {did: attempt for did, attempt in awaiting.items() if did in now}
        values = {"dids": list(awaiting), "attempts": list(awaiting.values())}
        counts: dict[str, int] = dict(self.db.execute(SQL["count_rows"], values).fetchall())
        held: dict[str, list[Any]] = {}
        times: dict[str, dict[str, int | None]] = {}
        for did, event, rev, received in self.db.execute(SQL["held_events"], {"dids": list(awaiting)}):
            held.setdefault(did, []).append(wire.decode_live(event))
            times.setdefault(did, {})[rev] = received
        return {did: Facts(counts.get(did, 0), held.get(did, ()), times.get(did, {})) for did in awaiting}

    def save(self, before: Mapping[str, Repo], after: Mapping[str, Repo]) -> None:
        """Write the repos that changed."""
        changed = [(before[did], repo) for did, repo in after.items() if repo != before[did]]
        if not changed:
            return
        values = {name: array([getattr(repo, name) for _, repo in changed]) for name in SAVED}
        values["commit_block"] = array([_unbase64(repo.commit_block) for _, repo in changed])
        values["moved"] = array([old.phase != new.phase or new.retry_in is not None for old, new in changed])
        values["desynced"] = array([new.desync_age == 0.0 for _, new in changed])
        self.db.execute(SQL["save"], values)
        # another handle, or an account that is back: its host may have denied the handle meanwhile
        returned = {new.did for old, new in changed if new.active and not old.active}
        if claims := sorted({new.did for old, new in changed if new.handle != old.handle} | returned):
            self.db.execute(SQL["claim_handles"], {"dids": claims})
        for old, new in changed:
            if old.phase != new.phase:
                metrics.TRANSITIONS.labels(new.phase, _bounded(new.reason)).inc()
                metrics.REPOS_GIVEN_UP.inc(new.phase == Phase.FAILED)

    def labels(self, labels: Iterable[wire.LabelEvent]) -> int:
        """Upsert labels; the number of distinct ones. The newest (cts, seq) wins."""
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

    def move(self, spans: Mapping[Part, tuple[int, int]]) -> None:
        """Move offsets from where we began to where we are now. Raises PartitionLost."""
        values: dict[str, Any] = {
            **self.scope,
            "topics": [part[0] for part in spans],
            "parts": [part[1] for part in spans],
        }
        values |= {"froms": [begin for begin, _ in spans.values()], "nexts": [end for _, end in spans.values()]}
        moved = self.db.execute(SQL["move_offsets"], values).rowcount
        if moved != len(spans):
            raise PartitionLost(f"{len(spans) - moved} of {len(spans)} partitions were moved by another worker")

    def _write_rows(self, work: Round) -> None:
        copied: list[Row] = []
        upserted: list[Row] = []
        deleted: list[tuple[str, str, str]] = []
        for did, rows in work.rows.items():
            target = copied if did in work.fresh else upserted
            for (collection, rkey), row in rows.items():
                if row is None:
                    deleted.append((did, collection, rkey))
                else:
                    target.append(row)
        if deleted:
            dids, collections, rkeys = (array(column) for column in zip(*deleted, strict=True))
            paths = {"dids": dids, "collections": collections, "rkeys": rkeys}
            self._delete("delete_records", paths, work.deleted)
        fits = not copied or self._copy(copied)
        if not fits:
            upserted += copied
        if upserted:
            self._upsert(upserted, work)
        if self.changes is not None:
            self.changes.passed += passed(work)
        for path, count in (("copy", len(copied)), ("upsert", len(upserted)), ("delete", len(deleted))):
            metrics.RECORDS_WRITTEN.labels(path).inc(count)
        kinds = (row[1] for row in chain(copied if fits else (), upserted, deleted))
        for kind, number in Counter(kinds).items():
            if kind in metrics.KIND_EVENTS:
                metrics.KIND_EVENTS[kind].inc(number)

    def _copy(self, rows: Sequence[Row]) -> bool:
        """COPY first rows straight into the table; False when one of them was there after all."""
        try:
            with self.db.transaction():
                self._fill("copy_records", rows)
        except errors.UniqueViolation:
            metrics.COPY_FALLBACKS.inc()
            return False
        if self.changes is not None:
            for row in rows:
                self.changes.put(row, existed=False)
        return True

    def _delete(self, statement: str, values: dict[str, Any], when: Mapping[Key, int | None]) -> None:
        if self.changes is None:
            self.db.execute(SQL[statement], values)
        else:
            self.changes.gone(self.db.execute(SQL[statement] + RETURNING, values).fetchall(), when)

    def _upsert(self, rows: Sequence[Row], work: Round) -> None:
        if self.staged:
            self.db.execute("truncate stage_record")
        self._fill("copy_stage", rows)
        if self.changes is not None:  # by path and CID: the AppView gets no others
            note_changed(self.db, self.changes, {row[:3]: row for row in rows}, work)
        self.db.execute(SQL["upsert_stage"])
        self.staged = True

    def _fill(self, statement: str, rows: Sequence[Row]) -> None:
        with self.db.cursor() as cursor, cursor.copy(SQL[statement]) as copy:
            copy.set_types(COPY_TYPES)
            for row in rows:
                copy.write_row(row if row[7] is None else (*row[:7], _unbase64(row[7]), *row[8:]))


def _repo(row: tuple[Any, ...], *, known: bool) -> Repo:
    (did, phase, reason, active, status, attempt, rev, heard_rev, from_snapshot, data, commit, *more) = row
    (account_time, account_seq, first_attempt, held, held_rev, desyncs, desync_age, retry_count, *hints) = more
    handle, host, signing_key, left_out, left_attempt, left_filter, held_bytes, account_relay, account_seen = hints
    return Repo(
        did,
        phase=phase,
        reason=reason,
        active=active,
        status=status,
        attempt=attempt,
        rev=rev,
        heard_rev=heard_rev,
        from_snapshot=from_snapshot,
        data=data,
        commit=commit,
        account_time=account_time,
        account_seq=account_seq,
        account_relay=account_relay,
        account_seen=account_seen,
        first_attempt=first_attempt,
        held=held,
        held_rev=held_rev,
        desyncs=desyncs,
        desync_age=desync_age,
        retry_count=retry_count,
        handle=handle,
        host=host,
        signing_key=signing_key,
        left_out=left_out,
        left_attempt=left_attempt,
        left_filter=left_filter,
        held_bytes=held_bytes,
        known=known,
    )


def _bounded(reason: str | None) -> str:
    """A reason as a label: statuses of accounts are words of the network, and only the usual ones may become labels."""
    return "" if reason is None else reason if reason in REASONS else "other"


def _unbase64(text: str | None) -> bytes | None:
    return None if text is None else from_base64(text)
