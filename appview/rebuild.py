"""`sluice appview`: fill the AppView's tables from `sluice.record`, and check them against it.

`rebuild` does repo after repo, locked as the index locks them, so that it may run beside a running index; a checkpoint says
where it stands, and it goes on from there. Each repo's old rows go and its new ones come in one transaction: readers see
either. `check` counts anew what is kept as differences.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import errors

from appview import gate_versions as gates
from appview import statements as appview_tables
from appview import writer as appview
from appview.edits import refused
from appview.projection.project import KNOWN, VERSION
from appview.reconcile import SQL as FOLD_SQL
from appview.reconcile import fold
from appview.state import SQL, begin, prepare, read
from appview.writer import AppViewWriter
from connectors.postgres.connection import REFUSALS, connect, own_transaction
from connectors.postgres.pg_array import array
from schemas.errors import OperatorError
from schemas.settings import Settings

REPOS = 200
PAGE = 10_000
TRIES = 8
ONE_KEY = ("app.bsky.actor.profile", "app.bsky.labeler.service")  # only the record with key `self` makes a row

Db = psycopg.Connection[Any]
Told = Callable[["Progress"], None]


@dataclass(slots=True)
class Progress:
    """How far a rebuild is. `invalid`: records that the AppView does not get."""

    repos: int = 0
    of_repos: int = 0
    records: int = 0
    invalid: int = 0
    resumed: bool = False
    seconds: float = 0.0
    folding: int = 0  # notes that wait to be folded

    def __str__(self) -> str:
        rate = self.records / self.seconds if self.seconds else 0.0
        waits = f", {self.folding} notes to fold" if self.folding else ""
        return f"{self.repos} of {self.of_repos} repos, {self.records} records ({rate:.0f}/s), {self.invalid} not valid{waits}"


@dataclass(frozen=True, slots=True)
class Drift:
    """What `check` found: kind → (how many differ, one of them)."""

    found: dict[str, tuple[int, str | None]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(count for count, _ in self.found.values())


def rebuild(settings: Settings, told: Told, *, anew: bool = False) -> Progress:
    """Fill everything; goes on where one was stopped. Raises OperatorError, AppviewUnavailable, psycopg.Error.

    `anew`: from empty tables, which mends whatever is wrong in them; readers see them fill.
    """
    with connect(settings.database, "sluice appview rebuild") as db:
        if settings.appview:
            begin(settings)
        if not read(db).active:
            raise OperatorError("SLUICE_APPVIEW is off here and at the index; set it to true for both")
        prepare(db)
        _index_uris(db)
        progress, after = _start(db, anew=anew)
        began = time.monotonic()
        while last := _chunk_again(db, after, progress):
            after = last
            progress.seconds = time.monotonic() - began
            told(progress)

        def waiting(notes: int) -> None:
            progress.folding = notes
            told(progress)

        fold_all(db, waiting)
        db.execute(SQL["end_rebuild"])
    return progress


def check(db: Db) -> Drift:
    """Recount in one snapshot. Takes a while on large tables. Raises OperatorError where the tables are not kept."""
    if not read(db).active:
        raise OperatorError(
            "the AppView's tables are not kept: SLUICE_APPVIEW is off; set it to true for the index, then run"
            " `sluice appview rebuild`"
        )
    drift = Drift()
    with own_transaction(db):
        db.execute("set transaction isolation level repeatable read read only")
        for name in ("posts", "profiles", "actors", "refused"):
            drift.found[name] = db.execute(SQL[f"check_{name}"]).fetchone() or (0, None)
        for collection, tables in appview_tables.OF_COLLECTION.items():
            if collection not in ONE_KEY:
                drift.found[tables[0]] = _lacking(db, collection, tables[0])
    return drift


def _lacking(db: Db, collection: str, table: str) -> tuple[int, str | None]:
    """Valid records against rows and their duplicates."""
    ((records,),) = db.execute(SQL["count_collection"], {"collection": collection}).fetchall()
    ((rows,),) = db.execute(appview_tables.count(table)).fetchall()
    like = f"at://%/{collection}/%"
    ((waiting,),) = db.execute("select count(*) from bsky.duplicate_record where uri like %s", [like]).fetchall()
    return abs(records - rows - waiting), None


def _start(db: Db, *, anew: bool) -> tuple[Progress, str]:
    with own_transaction(db):
        ((after,),) = db.execute(SQL["begin_rebuild"], {"anew": anew, "version": VERSION}).fetchall()
        db.execute(SQL["retry_refused"])
        if anew:
            db.execute(SQL["empty"])
            if kept := db.execute(SQL["empty_counts"]).fetchall():
                uris, counts = zip(*kept, strict=True)
                db.execute(SQL["keep_bookmarks"], {"uris": array(uris), "counts": array(counts)})
    ((of, done),) = db.execute(SQL["repos"], {"after": after}).fetchall()
    return Progress(repos=done, of_repos=of, resumed=bool(after)), after


def _chunk(db: Db, after: str, progress: Progress, *, singly: bool = False) -> str | None:
    """The next repos in one transaction; the last of them, None when there are no more.

    `singly`: record by record, so that one which the database refuses costs nothing but itself.
    """
    with own_transaction(db):
        dids = [row[0] for row in db.execute(SQL["next_repos"], {"after": after, "limit": REPOS})]
        if not dids:
            return None
        refill = AppViewWriter(db)
        refill.leave_repos(dids)
        db.execute(SQL["forget_invalid"], {"dids": dids})
        _judge_kept(db, dids)
        records = invalid = 0
        for page in _bodies(db, dids):
            invalid += refill.add_singly(page) if singly else refill.add(page)
            records += len(page)
        db.execute(SQL["set_actors"], {"dids": dids})
        gates.end_lost(db, dids)
        refill.finish()
        db.execute(SQL["checkpoint"], {"after": dids[-1]})
    progress.repos += len(dids)
    progress.records += records
    progress.invalid += invalid
    return str(dids[-1])


def _judge_kept(db: Db, dids: list[str]) -> None:
    """Edits that were not valid for the release that saw them, and are for this one."""
    for row in db.execute(SQL["kept_bodies"], {"dids": dids}).fetchall():
        if refused(row) is None:
            db.execute(appview.SQL["unkeep"], dict(zip(("did", "collection", "rkey"), row[:3], strict=True)))


def _bodies(db: Db, dids: list[str]) -> Iterator[list[Any]]:
    """Pages of records: a repo may have millions of them."""
    with db.cursor(name="bodies") as cursor:
        cursor.execute(SQL["bodies"], {"dids": dids, "collections": sorted(KNOWN)})
        while page := cursor.fetchmany(PAGE):
            yield page


def _chunk_again(db: Db, after: str, progress: Progress) -> str | None:
    """A transaction that crossed one of the index is done again, one that was refused record by record."""
    singly = False
    for _ in range(TRIES - 1):
        try:
            return _chunk(db, after, progress, singly=singly)
        except errors.DeadlockDetected:
            time.sleep(0.2)
        except REFUSALS:
            if singly:
                raise
            singly = True
    return _chunk(db, after, progress, singly=singly)


def _index_uris(db: Db) -> None:
    if db.execute(SQL["broken_index"]).fetchone() == (True,):
        db.execute(SQL["drop_index"])
    db.execute(SQL["index_uris_concurrently"])


def fold_all(db: Db, told: Callable[[int], None]) -> None:
    """Fold what was noted; where an index does it already, wait for that. `told`: notes that wait, every second and at the end."""
    db.execute(FOLD_SQL["make_stage"])
    told_at = 0.0
    while db.execute(FOLD_SQL["waits"]).fetchone() == (True,):
        if db.execute(FOLD_SQL["lock"]).fetchone() == (True,):
            try:
                if not fold(db):
                    time.sleep(0.1)
            except errors.DeadlockDetected:
                time.sleep(0.2)
            finally:
                db.execute(FOLD_SQL["unlock"])
        else:
            time.sleep(0.3)
        if time.monotonic() - told_at > 1.0:
            ((waiting,),) = db.execute(SQL["dirty_rows"]).fetchall()
            told(waiting)
            told_at = time.monotonic()
    told(0)
