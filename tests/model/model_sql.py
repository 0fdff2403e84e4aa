"""The model's database and the real one side by side: `Twin` runs every transaction on both and compares all rows.

The real side is `RepoQueue`, `IndexStore` and `apply_events` on PostgreSQL, with the model's time: statements call `now()`,
and the search path of the test's database puts one before PostgreSQL's that reads the model's clock.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psycopg

from connectors.postgres.repo_queue import Claim, Discovery, ListedRepo, RepoQueue
from control import filter_changes
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from flows.index.stream_offsets import PartitionLost as RealPartitionLost
from schemas import wire
from schemas.filter_spec import FilterSpec
from schemas.settings import Settings
from tests.model.model_filters import FilterRow
from tests.model.model_rows import GRACE, HOURLY, LEASE, PDS, REAP_DELAY, TOPICS, Crash, Kernel, PartitionLost, Row
from tests.model.model_tables import ModelTables

CLUSTER = "c"
EPOCH = 1_800_000_000

CLOCK = """
create schema fake;
create table fake.clock (at double precision not null);
insert into fake.clock values (0);
create function fake.now() returns timestamptz language sql stable as 'select to_timestamp({epoch} + at) from fake.clock';
create function fake.clock_timestamp() returns timestamptz language sql stable as 'select fake.now()';
alter table sluice.repo alter next_retry_at set default fake.now(), alter phase_since set default fake.now(),
    alter discovered_at set default fake.now();
alter database {database} set search_path = fake, pg_catalog, public;
"""

ROWS = """
select did, phase, reason, active, status, attempt, rev, seen_rev, from_snapshot, data, commit, account_time, account_seq,
       first_attempt, buffered, buffered_rev, buffered_bytes, account_relay, account_seen, desyncs, retry_count, handle, worker, produced_offset, listed_rev,
       left_out, left_attempt, left_filter,
       {times},
       array(select round(extract(epoch from at) - {epoch}, 3)::float8 from unnest(fetched_at) with ordinality as f (at, n) order by n)
from sluice.repo order by did
"""
TIMES = (
    "lease_until",
    "queued_at",
    "next_retry_at",
    "stale_since",
    "listed_since",
    "phase_since",
    "completed_at",
    "desynced_at",
)
REPO = (
    *("did", "phase", "reason", "active", "status", "attempt", "rev", "seen_rev", "from_snapshot", "data", "commit"),
    *(
        "account_time",
        "account_seq",
        "first_attempt",
        "buffered",
        "buffered_rev",
        "buffered_bytes",
        "account_relay",
        "account_seen",
        "desyncs",
        "retry_count",
        "handle",
    ),
)


FILTER = f"""
select version, collections, clean, round(extract(epoch from widened_at) - {EPOCH}, 3)::float8, walk_after, prune_after
from sluice.filter
"""


class SqlTables:
    """The real transactions. One for many schedules: `reset` empties the tables."""

    def __init__(self, database: str) -> None:
        with psycopg.connect(database, autocommit=True) as db:
            name = db.info.dbname
            db.execute(CLOCK.format(epoch=EPOCH, database=name).encode())
        settings = Settings(
            database=database,
            lease_seconds=LEASE,
            backfill_max_attempts=Kernel().rules.max_attempts,
            resyncs_per_repo_hour=HOURLY,
        )
        self.settings = settings
        self.store = RepoQueue(settings)
        self.tables = IndexStore(settings, CLUSTER, None)
        self.rules = Kernel().rules
        self.db = psycopg.connect(database, autocommit=True)

    def reset(self) -> None:
        tables = (
            "repo",
            "record_row",
            "buffered_event",
            "stream_offset",
            "filter",
        )  # of few rows: cheaper than to truncate them
        self.db.execute("; ".join(f"delete from sluice.{name}" for name in tables).encode())
        self.db.execute("insert into sluice.filter default values")
        self.set_time(0.0)
        self.tables.starts({(topic, 0): (0, 1 << 40) for topic in TOPICS})

    def close(self) -> None:
        self.store.close()
        self.tables.close()
        self.db.close()

    def set_time(self, now: float) -> None:
        self.db.execute("update fake.clock set at = %s", (now,))

    def index(
        self,
        queues: Mapping[str, Sequence[Any]],
        spans: Mapping[str, tuple[int, int]],
        *,
        crash: bool,
        replayed: bool,
    ) -> None:
        try:
            with self.tables.transaction() as transaction:
                apply_events(transaction, queues, replace(self.rules, replayed=replayed))
                if spans:
                    transaction.move({(topic, 0): span for topic, span in spans.items()})
                if crash:
                    raise Crash
        except RealPartitionLost:
            raise PartitionLost from None

    def dump(self) -> dict[str, Any]:
        times = ", ".join(f"round(extract(epoch from {name}) - {EPOCH}, 3)::float8" for name in TIMES)
        rows, records, buffered, moved, (asked,) = self._read(
            ROWS.format(times=times, epoch=EPOCH),
            "select did, rkey, cid, rev, attempt, reason from sluice.record",
            "select did, log_offset, event from sluice.buffered_event",
            "select topic, next from sluice.stream_offset",
            FILTER,
        )
        found: dict[str, Any] = {row[0]: (row[1:], {}, {}) for row in rows}
        for did, rkey, *record in records:
            found[did][1][rkey] = tuple(record)
        for did, offset, event in buffered:
            found[did][2][offset] = wire.decode_live(event)
        return found | {"offsets": dict(moved), "filter": asked}

    def _read(self, *queries: str) -> list[list[Any]]:
        """The rows of each query, all in one round trip."""
        cursor = self.db.execute(";".join(queries).encode())
        found = [cursor.fetchall()]
        while cursor.nextset():
            found.append(cursor.fetchall())
        return found


def plain(row: Row) -> Any:
    """A row of the model as `dump` shows it."""
    values = [getattr(row.repo, name) for name in REPO[1:]]
    times = [None if getattr(row, name) is None else round(getattr(row, name), 3) for name in TIMES]
    strings = [str(value) if isinstance(value, str) else value for value in values]
    fetched = [round(at, 3) for at in row.fetched]
    left = (row.repo.left_out, row.repo.left_attempt, row.repo.left_filter)
    return (*strings, row.worker, row.produced, row.listed_rev, *left, *times, fetched), row.records, row.buffered


def plain_filter(row: FilterRow) -> Any:
    """The model's filter as `dump` shows it."""
    widened = None if row.widened_at is None else round(row.widened_at, 3)
    asked = row.filter
    return asked.version, list(asked.collections), asked.clean, widened, row.walk_after, row.prune_after


class Difference(AssertionError):
    """Model and database do not agree."""


class Twin:
    """Both databases as one, for `gate_model.run(seed, tables=...)`."""

    def __init__(self, sql: SqlTables) -> None:
        self.model = ModelTables(Kernel())
        self.sql = sql
        self.compared = 0
        self.walk = filter_changes.FilterWalk(repos=1, prune_repos=1)
        sql.reset()

    @property
    def now(self) -> float:
        return self.model.now

    @now.setter
    def now(self, value: float) -> None:
        self.model.now = value
        self.sql.set_time(value)

    @property
    def rows(self) -> dict[str, Row]:
        return self.model.rows

    @property
    def filter(self) -> FilterRow:
        return self.model.filter

    @property
    def offsets(self) -> dict[str, int]:
        return self.model.offsets

    def same(self, what: str, modelled: Any, real: Any) -> Any:
        if modelled != real:
            raise Difference(f"{what}: the model has {modelled}, the database {real}")
        found = self.sql.dump()
        expected: dict[str, Any] = {did: plain(row) for did, row in self.model.rows.items()}
        expected |= {"offsets": self.model.offsets, "filter": plain_filter(self.model.filter)}
        self.compared += 1
        for did in found.keys() | expected.keys():
            if expected.get(did) != found.get(did):
                raise Difference(f"after {what}: {did}\n  model    {expected.get(did)}\n  database {found.get(did)}")
        return modelled

    def discover(self, listed: Sequence[ListedRepo]) -> Discovery:
        dids = [entry.did for entry in listed]
        self.sql.db.execute(
            "insert into sluice.identity (did, pds) select unnest(%s::text[]), %s on conflict do nothing", (dids, PDS)
        )
        one, other = self.model.discover(listed), self.sql.store.discover(listed)
        self.same("discover", _summary(one), _summary(other))
        return one

    def claim(self, tasks: Sequence[wire.RepoTask], worker: str) -> list[Claim]:
        real = sorted(self.sql.store.claim(tasks, worker), key=lambda claim: claim.did)
        return self.same(f"claim {tasks}", self.model.claim(tasks, worker), real)  # type: ignore[no-any-return]

    def renew(self, worker: str, claims: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        return self.same("renew", self.model.renew(worker, list(claims)), self.sql.store.renew(worker, claims))  # type: ignore[no-any-return]

    def produced(self, did: str, attempt: int, offset: int) -> None:
        self.model.produced(did, attempt, offset)
        self.sql.store.produced([(did, attempt, 0, offset)])
        self.same("produced", None, None)

    def retry(self, did: str, attempt: int, delay: float, *, counted: bool) -> Any:
        real = self.sql.store.retry(did, attempt, "error", delay, counted=counted)
        return self.same("retry", self.model.retry(did, attempt, delay, counted=counted), real)

    def release_all(self, worker: str) -> Any:
        return self.same("release_all", self.model.release_all(worker), self.sql.store.release_all(worker))

    def reap(self) -> Any:
        return self.same("reap", self.model.reap(), self.sql.store.reap(CLUSTER, REAP_DELAY))

    def stale(self, did: str, attempt: int) -> Any:
        return self.same("stale", self.model.stale(did, attempt), self.sql.store.stale(did, attempt, GRACE))

    def refetch(self, did: str, attempt: int) -> bool:
        return self.same("refetch", self.model.refetch(did, attempt), self.sql.store.refetch(did, attempt))  # type: ignore[no-any-return]

    def due(self) -> list[wire.RepoTask]:
        one, other = self.model.due(), self.sql.store.due(1000)
        self.same("due", sorted((t.did, t.attempt) for t in one), sorted((t.did, t.attempt) for t in other))
        return one

    def queued_long(self, before: float) -> Any:
        modelled = self.model.queued_long(before)
        real = self.sql.store.queued_long(EPOCH + before, 1000)
        self.same("queued_long", sorted(did for did, *_ in modelled), sorted(did for did, *_ in real))
        return modelled

    def unqueue(self, dids: Iterable[str]) -> None:
        self.model.unqueue(dids)
        self.sql.store.unqueue(list(dids))
        self.same("unqueue", None, None)

    def lost_events(self) -> Any:
        return self.same("lost_events", self.model.lost_events(), sorted(self.sql.store.lost_events(GRACE)))

    def retry_failed(self) -> Any:
        return self.same("retry_failed", self.model.retry_failed(), sorted(self.sql.store.retry_failed(None)))

    def set_filter(self, collections: Sequence[str]) -> None:
        self.model.set_filter(collections)
        self.sql.set_time(self.model.now)
        filter_changes.change(self.sql.db, FilterSpec(collections=list(collections)))
        self.same("set_filter", None, None)

    def prune(self) -> None:
        self.model.prune()
        filter_changes.prune(self.sql.db)
        self.same("prune", None, None)

    def carry_out(self) -> None:
        self.model.carry_out()
        self.walk.step(self.sql.db)
        self.same("carry_out", None, None)

    def lose(self, topic: str, start: int) -> None:
        self.model.lose(topic, start)
        self.sql.tables.starts({(topic, 0): (start, 1 << 40)})
        self.same("lose", None, None)

    def index(
        self,
        queues: Mapping[str, Sequence[Any]],
        spans: Mapping[str, tuple[int, int]],
        *,
        crash: bool = False,
        replayed: bool = False,
    ) -> None:
        ended = []
        for side in (self.model.index, self.sql.index):
            try:
                side(queues, spans, crash=crash, replayed=replayed)
                ended.append(None)
            except (Crash, PartitionLost) as err:
                ended.append(type(err))
        self.same("index", *ended)
        if ended[0] is not None:
            raise ended[0]


def _summary(found: Discovery) -> Any:
    return sorted((task.did, task.attempt) for task in found.tasks), found.new, found.known
