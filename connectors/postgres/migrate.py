"""Migrations: plain SQL files, each applied once, in order.

`migrate(url)` applies the missing ones and returns their names. Each file runs in its own transaction (unless its first line
is `-- no-transaction`, for concurrent index builds) and is recorded with a checksum. An advisory lock serializes processes
that start together. An applied file that has changed is an error.

No transaction of the index is open while a file is applied in a transaction: one that had locked repos and waited for the records, which the
file had locked already, would be rolled back as a deadlock.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg

from connectors.postgres.connection import connect
from schemas.errors import OperatorError
from schemas.sql import queries

LOCK_KEY = 0x51_01_CE  # arbitrary; polled, because CREATE INDEX CONCURRENTLY would deadlock with blocked waiters
FIRST_OF_0_1 = "0001_sluice.sql"
LOCK_WAIT_SECONDS = 300.0
INDEX_FENCE = queries("filter")["fence_alone"]
"""Waits until no transaction of the index is open, and keeps it so until the end of this one. The index takes it, shared, before anything else."""


class MigrationError(OperatorError):
    """A migration cannot be applied. The message names the file or lock, and the remedy."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its name, its SQL, and whether it runs inside a transaction."""

    name: str
    sql: str
    transactional: bool

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def available() -> list[Migration]:
    """Migrations of this release, sorted by name."""
    folder = files("schemas.sql") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    texts = [(name, (folder / name).read_text("utf-8")) for name in names]
    return [Migration(name, text, not text.startswith("-- no-transaction")) for name, text in texts]


def migrate(url: str) -> list[str]:
    """Apply the missing migrations; returns their names. Raises MigrationError, psycopg.Error."""
    with connect(url, "sluice migrate") as db, schema_lock(db):
        db.execute("create schema if not exists sluice")
        db.execute(
            "create table if not exists sluice.migration"
            " (name text primary key, checksum text not null, applied_at timestamptz not null default now())"
        )
        return [migration.name for migration in _missing(db) if _apply(db, migration)]


@contextmanager
def schema_lock(db: psycopg.Connection[Any]) -> Iterator[None]:
    """Hold the lock for schema changes, in one process at a time. Raises MigrationError if it is not free in time."""
    _take_lock(db)
    try:
        yield
    finally:
        db.execute("select pg_advisory_unlock(%s)", (LOCK_KEY,))


def missing(url: str) -> list[str]:
    """Names of the missing migrations. Raises MigrationError, psycopg.Error."""
    with connect(url, "sluice migrate") as db:
        if db.execute("select to_regclass('sluice.migration')").fetchone() == (None,):
            return [migration.name for migration in available()]
        return [migration.name for migration in _missing(db)]


def _missing(db: psycopg.Connection[tuple[object, ...]]) -> list[Migration]:
    applied = {str(name): str(checksum) for name, checksum in db.execute("select name, checksum from sluice.migration")}
    if FIRST_OF_0_1 in applied:
        raise MigrationError(
            "this database was filled by release 0.1, whose tables are not upgraded; create an empty database and run"
            " `sluice replay --all --into URL` with this release, then set SLUICE_DATABASE to it"
        )
    todo = []
    for migration in available():
        known = applied.get(migration.name)
        if known is None:
            todo.append(migration)
        elif known != migration.checksum:
            raise MigrationError(
                f"migration {migration.name} was changed after it had been applied; restore the file of the release that"
                " applied it and put the change into a new migration"
            )
    return todo


def _apply(db: psycopg.Connection[tuple[object, ...]], migration: Migration) -> bool:
    record = "insert into sluice.migration (name, checksum) values (%s, %s)"
    try:
        if migration.transactional:
            with db.transaction():
                db.execute(INDEX_FENCE)
                db.execute(migration.sql.encode())
                db.execute(record, (migration.name, migration.checksum))
        else:
            for statement in (part.strip() for part in migration.sql.split(";\n")):
                if statement:
                    db.execute(statement.encode())
            db.execute(record, (migration.name, migration.checksum))
    except psycopg.Error as err:
        raise MigrationError(f"migration {migration.name} failed: {err}") from err
    return True


def _take_lock(db: psycopg.Connection[tuple[object, ...]]) -> None:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while db.execute("select pg_try_advisory_lock(%s)", (LOCK_KEY,)).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise MigrationError("another process has held the migration lock for five minutes; find it in pg_locks")
        time.sleep(0.2)
