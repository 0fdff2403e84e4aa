"""`sluice appview`: fill the AppView's tables from `sluice.record`, and check them against it.

`rebuild` replaces the rows repo by repo, locked as the index locks them, so the index may keep running. One transaction removes
the old rows of a repo and inserts the new ones, so readers see one or the other. An interrupted rebuild resumes from its checkpoint.
`check` recounts what the tables keep as counters.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import errors

from appview import gate_versions as gates
from appview import statements
from appview.edits import refused
from appview.projection.project import KNOWN, VERSION
from appview.reconcile import SQL as RECONCILE_SQL
from appview.reconcile import reconcile
from appview.state import SQL, begin, prepare, read
from appview.writer import SQL as WRITER_SQL
from appview.writer import AppViewWriter
from connectors.postgres.connection import REFUSALS, connect, own_transaction
from connectors.postgres.migrate import INDEX_FENCE, schema_lock
from connectors.postgres.pg_array import array
from schemas.errors import OperatorError
from schemas.settings import Settings

REPOS = 200
PAGE = 10_000
TRIES = 8
ONE_KEY = ("app.bsky.actor.profile", "app.bsky.labeler.service")  # only the record with key `self` makes a row

Db = psycopg.Connection[Any]
Report = Callable[["RebuildProgress"], None]


@dataclass(slots=True)
class RebuildProgress:
    """Progress of a rebuild. `invalid`: records that the AppView refuses."""

    repos: int = 0
    of_repos: int = 0
    records: int = 0
    invalid: int = 0
    resumed: bool = False
    seconds: float = 0.0
    notes: int = 0  # left to reconcile

    def __str__(self) -> str:
        rate = self.records / self.seconds if self.seconds else 0.0
        left = f", {self.notes} notes to reconcile" if self.notes else ""
        return f"{self.repos} of {self.of_repos} repos, {self.records} records ({rate:.0f}/s), {self.invalid} not valid{left}"


@dataclass(frozen=True, slots=True)
class Drift:
    """The result of `check`: kind → (how many differ, one of them)."""

    found: dict[str, tuple[int, str | None]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(count for count, _ in self.found.values())


def rebuild(settings: Settings, report: Report, *, from_empty: bool = False) -> RebuildProgress:
    """Fill all tables; resumes an interrupted rebuild. Raises OperatorError, AppviewUnavailable, psycopg.Error.

    `from_empty`: empty the tables first, which repairs any error in them; meanwhile readers see incomplete tables.
    """
    with connect(settings.database, "sluice appview rebuild") as db:
        if settings.appview:
            begin(settings)
        if not read(db).active:
            raise OperatorError("SLUICE_APPVIEW is off; set it to true here and for the index")
        with schema_lock(db):
            prepare(db)
        progress, after = _start(db, from_empty=from_empty)
        began = time.monotonic()
        while last := _chunk_retried(db, after, progress):
            after = last
            progress.seconds = time.monotonic() - began
            report(progress)

        def left(notes: int) -> None:
            progress.notes = notes
            report(progress)

        reconcile_all(db, left)
        db.execute(SQL["end_rebuild"])
    return progress


def check(db: Db) -> Drift:
    """Recount in one snapshot; slow on large tables. Raises OperatorError if the tables are off."""
    if not read(db).active:
        raise OperatorError(
            "the AppView's tables are off: SLUICE_APPVIEW is not set; set it to true for the index, then run"
            " `sluice appview rebuild`"
        )
    drift = Drift()
    with own_transaction(db):
        db.execute("set transaction isolation level repeatable read read only")
        for name in ("posts", "profiles", "actors", "refused"):
            drift.found[name] = db.execute(SQL[f"check_{name}"]).fetchone() or (0, None)
        for collection, tables in statements.OF_COLLECTION.items():
            if collection not in ONE_KEY:
                drift.found[tables[0]] = _lacking(db, collection, tables[0])
    return drift


def _lacking(db: Db, collection: str, table: str) -> tuple[int, str | None]:
    """Compare the number of valid records with rows and duplicates."""
    ((records,),) = db.execute(SQL["count_collection"], {"collection": collection}).fetchall()
    ((rows,),) = db.execute(statements.count(table)).fetchall()
    like = f"at://%/{collection}/%"
    ((duplicates,),) = db.execute("select count(*) from bsky.duplicate_record where uri like %s", [like]).fetchall()
    return abs(records - rows - duplicates), None


def _start(db: Db, *, from_empty: bool) -> tuple[RebuildProgress, str]:
    with own_transaction(db):
        if from_empty:
            db.execute(INDEX_FENCE)  # the index writes the tables in another order than they are emptied
        ((after,),) = db.execute(SQL["begin_rebuild"], {"from_empty": from_empty, "version": VERSION}).fetchall()
        db.execute(SQL["retry_refused"])
        if from_empty:
            db.execute(SQL["empty"])
            if kept := db.execute(SQL["empty_counts"]).fetchall():
                uris, counts = zip(*kept, strict=True)
                db.execute(SQL["keep_bookmarks"], {"uris": array(uris), "counts": array(counts)})
    ((of, done),) = db.execute(SQL["repos"], {"after": after}).fetchall()
    return RebuildProgress(repos=done, of_repos=of, resumed=bool(after)), after


def _chunk(db: Db, after: str, progress: RebuildProgress, *, singly: bool = False) -> str | None:
    """Rebuild the next repos in one transaction; returns the last of them, None after the end.

    `singly`: one record per savepoint, so a refused record does not affect the others.
    """
    with own_transaction(db):
        dids = [row[0] for row in db.execute(SQL["next_repos"], {"after": after, "limit": REPOS})]
        if not dids:
            return None
        refill = AppViewWriter(db)
        refill.remove_repos(dids)
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
    """Accept edits that an older release refused, if this one takes them."""
    for row in db.execute(SQL["kept_bodies"], {"dids": dids}).fetchall():
        if refused(row) is None:
            db.execute(WRITER_SQL["unkeep"], dict(zip(("did", "collection", "rkey"), row[:3], strict=True)))


def _bodies(db: Db, dids: list[str]) -> Iterator[list[Any]]:
    """Records in pages, since a repo may have millions."""
    with db.cursor(name="bodies") as cursor:
        cursor.execute(SQL["bodies"], {"dids": dids, "collections": sorted(KNOWN)})
        while page := cursor.fetchmany(PAGE):
            yield page


def _chunk_retried(db: Db, after: str, progress: RebuildProgress) -> str | None:
    """Repeat the transaction after a deadlock with the index; after a refusal, record by record."""
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


def reconcile_all(db: Db, report: Callable[[int], None]) -> None:
    """Process all notes, or wait while an index process does it. `report`: gets the number left, every second and at the end."""
    db.execute(RECONCILE_SQL["make_stage"])
    reported_at = 0.0
    while db.execute(RECONCILE_SQL["is_due"]).fetchone() == (True,):
        if db.execute(RECONCILE_SQL["lock"]).fetchone() == (True,):
            try:
                if not reconcile(db):
                    time.sleep(0.1)
            except errors.DeadlockDetected:
                time.sleep(0.2)
            finally:
                db.execute(RECONCILE_SQL["unlock"])
        else:
            time.sleep(0.3)
        if time.monotonic() - reported_at > 1.0:
            ((left,),) = db.execute(SQL["dirty_rows"]).fetchall()
            report(left)
            reported_at = time.monotonic()
    report(0)
