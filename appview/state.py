"""Where the AppView's projection stands: on or off, complete or not, made by which version (`sluice.appview`).

`begin(settings)` is called by every index process before it reads: it makes what the projection needs, or says in one line
what is missing. A projection that lacks records (it was off, or an older version made it) is kept up from here on, and filled
by `sluice appview rebuild`.
"""

import logging
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors

from appview.projection.project import VERSION
from appview.sql import queries
from connectors.postgres.connection import connect
from connectors.postgres.migrate import LOCK_KEY
from connectors.runtime import metrics
from schemas.errors import OperatorError
from schemas.settings import Settings

SQL = queries("state")
SMALL = 200_000
"""Records up to which the index on URIs is made at the start; above, `sluice appview rebuild` makes it without locking."""

log = logging.getLogger("appview")

Db = psycopg.Connection[Any]


class AppviewUnavailable(OperatorError):
    """The database cannot hold the projection; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class State:
    """The row of `sluice.appview`."""

    active: bool
    complete: bool
    version: int | None
    rebuild_after: str | None
    rebuild_version: int | None

    @property
    def current(self) -> bool:
        """Does it hold all that `sluice.record` holds, as this release would write it?"""
        return self.complete and self.version == VERSION


def read(db: Db) -> State:
    """Where it stands."""
    row = db.execute(SQL["state"]).fetchone()
    return State(*row) if row else State(False, False, None, None, None)  # a row deleted by hand


def is_active(db: Db) -> bool:
    """Whether whoever writes records keeps up the projection."""
    return read(db).active


def prepare(db: Db) -> None:
    """Extension and indexes, if they are missing. Raises AppviewUnavailable."""
    try:
        with db.transaction():
            db.execute("select pg_advisory_xact_lock(%s)", (LOCK_KEY,))
            db.execute(SQL["prepare"])
    except (errors.InsufficientPrivilege, errors.FeatureNotSupported, errors.UndefinedFile) as err:
        why = str(err).strip().splitlines()[0]
        raise AppviewUnavailable(
            f"SLUICE_APPVIEW needs the extension pg_trgm ({why}); install PostgreSQL's contrib package and run"
            " `create extension pg_trgm` in this database as its owner, or unset SLUICE_APPVIEW"
        ) from err


def begin(settings: Settings) -> State:
    """Switch the projection on or off as the settings say. Raises AppviewUnavailable, psycopg.Error."""
    with connect(settings.database, "sluice appview") as db:
        if not settings.appview:
            if db.execute(SQL["switch_off"]).rowcount:
                log.warning("the AppView's tables are not kept any more: SLUICE_APPVIEW is off")
            return read(db)
        prepare(db)
        row = db.execute(SQL["has_records"], {"many": SMALL}).fetchone()
        some, many = row or (True, True)
        if not many:
            db.execute(SQL["index_uris"])
        db.execute(SQL["switch_on"], {"version": VERSION, "empty": not some})
        state = read(db)
    metrics.APPVIEW_INCOMPLETE.set(not state.current)
    if not state.current:
        made = "holds only part of the records" if state.version in (None, VERSION) else "was made by another version"
        log.warning(
            f"the AppView's projection {made}; run `sluice appview rebuild`, beside the running index if you like"
        )
    return state
