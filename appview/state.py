"""State of the AppView's tables: on or off, complete or not, and the version that wrote them (`sluice.appview`).

Every index process calls `begin(settings)` before it reads: it creates the indexes that the tables need, or raises an error of
one line. Tables that lack records (they were off, or an older version wrote them) are maintained from then on, and
`sluice appview rebuild` fills them.
"""

import logging
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors

from appview.projection.project import VERSION
from appview.sql import queries
from connectors.postgres.connection import connect, own_transaction
from connectors.postgres.migrate import INDEX_FENCE, schema_lock
from connectors.runtime import metrics
from schemas.errors import OperatorError
from schemas.settings import Settings

SQL = queries("state")

log = logging.getLogger("appview")

Db = psycopg.Connection[Any]


class AppviewUnavailable(OperatorError):
    """The database cannot have these tables; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class AppViewState:
    """The row of `sluice.appview`."""

    active: bool
    complete: bool
    version: int | None
    rebuild_after: str | None
    rebuild_version: int | None

    @property
    def current(self) -> bool:
        """Whether the tables have all of `sluice.record`, as this release would write it."""
        return self.complete and self.version == VERSION


def read(db: Db) -> AppViewState:
    row = db.execute(SQL["state"]).fetchone()
    return AppViewState(*row) if row else AppViewState(False, False, None, None, None)  # the row was deleted by hand


def is_active(db: Db) -> bool:
    """Whether every writer of records must maintain the tables."""
    return read(db).active


def prepare(db: Db) -> None:
    """Create the extension and the indexes, if missing. The caller holds the schema lock. Raises AppviewUnavailable."""
    try:
        if db.execute(SQL["is_prepared"]).fetchone() != (True,):  # else no table is locked that another process writes
            with own_transaction(db):
                db.execute(INDEX_FENCE)
                db.execute(SQL["prepare"])
    except (errors.InsufficientPrivilege, errors.FeatureNotSupported, errors.UndefinedFile) as err:
        why = str(err).strip().splitlines()[0]
        raise AppviewUnavailable(
            f"SLUICE_APPVIEW needs the extension pg_trgm ({why}); install PostgreSQL's contrib package and run"
            " `create extension pg_trgm` in this database as its owner, or unset SLUICE_APPVIEW"
        ) from err


def begin(settings: Settings) -> AppViewState:
    """Switch the projection on or off as the settings say. Raises AppviewUnavailable, MigrationError, psycopg.Error."""
    with connect(settings.database, "sluice appview") as db:
        if not settings.appview:
            if db.execute(SQL["switch_off"]).rowcount:
                log.warning("the AppView's tables are no longer maintained: SLUICE_APPVIEW is off")
            return read(db)
        with schema_lock(db):  # processes that start together: PostgreSQL's `if not exists` fails if both create it
            state = _switch_on(db)
    metrics.APPVIEW_INCOMPLETE.set(not state.current)
    if not state.current:
        made = "holds only part of the records" if state.version in (None, VERSION) else "was made by another version"
        log.warning(f"the AppView's projection {made}; run `sluice appview rebuild`; the index may keep running")
    return state


def _switch_on(db: Db) -> AppViewState:
    prepare(db)
    ((some,),) = db.execute(SQL["has_records"]).fetchall()
    db.execute(SQL["switch_on"], {"version": VERSION, "empty": not some})
    return read(db)
