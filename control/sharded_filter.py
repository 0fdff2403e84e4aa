"""The filter of a mirror with several shards: set in the main database, then in each shard, whose index reads its own copy.

A shard that does not answer gets the change from control when it does (`follow`). Listings may have named repos meanwhile that
only the new filter admits, so that is recorded as a gap, which the next listing resolves. With one database these functions are
those of filter_changes.py.
"""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import psycopg

from connectors.postgres.connection import connect, tuple_database
from connectors.postgres.shards import Shards, ShardUnavailable, shard_settings
from connectors.postgres.stream_cursors import note_gap
from control import filter_changes
from control.filter_changes import SQL, Connection, FilterWalk
from schemas.errors import OperatorError
from schemas.filter_spec import FilterSpec, FilterState
from schemas.settings import Settings
from schemas.shard_ranges import shard_ranges
from steps.cursor import Gap
from steps.gate.filter_edits import FilterEdit

LATE = timedelta(minutes=1)
COMPARED = ("version", "set_at", "collections", "boundary", "signal", "dids")


def show(settings: Settings, db: Connection) -> FilterState:
    """The filter, and how far all shards have applied it. `db`: of the main database, in all functions here."""
    state = filter_changes.show(db)
    if not settings.shards:
        return state
    shards = [_show(one) for one in shard_settings(settings)]
    return state.model_copy(
        update={
            "outside": sum(one.outside for one in shards),
            "walking": any(one.walking or not _same(one, state) for one in shards),
            "pruning": any(one.pruning for one in shards),
            "clean": all(one.clean for one in shards),
        }
    )


def change(settings: Settings, db: Connection, wanted: FilterSpec | FilterEdit) -> FilterState:
    """Set or edit the filter. Raises OperatorError if a shard does not answer: it gets the filter later."""
    filter_changes.change(db, wanted)
    for one in shard_ranges(settings.shards):
        try:
            with connect(one.url, "sluice filters") as shard:
                follow(db, shard)
        except psycopg.OperationalError as err:
            raise OperatorError(
                f"shard {one.name} does not answer ({err}); control sets the filter there as soon as it does"
            ) from err
    return show(settings, db)


def prune(settings: Settings, db: Connection) -> FilterState:
    """Start the removal of the rows outside; the control process carries it out."""
    if not settings.shards:
        return filter_changes.prune(db)
    for one in shard_settings(settings):
        with connect(one.database, "sluice filters") as shard:
            filter_changes.prune(shard)
    return show(settings, db)


def follow(db: Connection, shard: Connection) -> bool:
    """Give a shard the filter of the main database. False if it has it."""
    state = filter_changes.show(db)
    if _same(filter_changes.show(shard), state):
        return False
    filter_changes.change(shard, filter_changes.spec_of(db, state), state)
    return True


class ShardWalks:
    """`FilterWalk` of each shard, for control."""

    def __init__(self, settings: Settings, statement_seconds: float) -> None:
        self._shards = Shards(
            settings, lambda one: tuple_database(one, "sluice control", statement_seconds=statement_seconds)
        )
        self._walk = FilterWalk()

    def steps(self, db: Connection) -> None:
        """A few steps on each shard that answers. Raises psycopg.Error."""
        for number, name in enumerate(self._shards.names):
            with suppress(ShardUnavailable):
                self._shards.call(number, lambda shard, name=name: self._step(db, shard(), name))  # type: ignore[misc]

    def _step(self, db: Connection, shard: Connection, name: str) -> None:
        state = filter_changes.show(db)
        if not _same(filter_changes.show(shard), state) and datetime.now(UTC) - state.set_at > LATE:
            # before the change: a crash in between notes it twice
            note_gap(db, Gap(f"shard:{name}", None, None, "the shard got the filter late"))
        follow(db, shard)
        self._walk.steps(shard)


def restored(settings: Settings, db: Connection, url: str) -> None:
    """Reconcile main database and shards after one of them (`url`) was restored: a listing, and for main also numbers in use.

    All shards must answer for the latter. Raises psycopg.Error.
    """
    note_gap(db, Gap("shards", None, None, "a database was restored from a backup"))
    if url != settings.database:
        return
    version, job = 0, 0
    for one in shard_settings(settings):
        with connect(one.database, "sluice filters") as shard:
            row = shard.execute(SQL["used"]).fetchone() or (0, 0)
            version, job = max(version, row[0]), max(job, row[1])
    db.execute(SQL["above_version"], {"version": version})
    db.execute(SQL["above_job"], {"job": job})


def _same(one: FilterState, other: FilterState) -> bool:
    """Not only the version: a restored main database assigns versions again. `set_at` tells lists of DIDs apart."""
    return all(getattr(one, name) == getattr(other, name) for name in COMPARED)


def _show(settings: Settings) -> FilterState:
    with connect(settings.database, "sluice filters") as db:
        return filter_changes.show(db)
