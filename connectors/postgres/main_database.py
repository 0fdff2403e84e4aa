"""The main database, as work on a shard uses it: when it does not answer, that is not the shard's fault."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from connectors.postgres.connection import Database, tuple_database
from connectors.runtime.retry_database import is_transient
from schemas.settings import Settings
from schemas.sql import Statement

SILENT = (psycopg.OperationalError, psycopg.InternalError)
"""A database does not answer; the second: it is a read-only standby, ended the session, or is damaged."""


class MainUnavailable(psycopg.OperationalError):
    """The main database does not answer. Work on a shard that needs it is repeated when it does."""


def is_silent(error: BaseException) -> bool:
    """Whether the database did not answer, rather than refuse a row."""
    return isinstance(error, SILENT) and (is_transient(error) or not isinstance(error, psycopg.OperationalError))


@contextmanager
def asking_main() -> Iterator[None]:
    """Raises MainUnavailable if the main database, asked in the block, does not answer."""
    try:
        yield
    except SILENT as err:
        if not is_silent(err):
            raise
        raise MainUnavailable(" ".join(str(err).split())) from err


class MainDatabase:
    """Statements on the main database, each its own transaction, for work on `shard`. `settings`: None if both are the same."""

    def __init__(self, settings: Settings | None, shard: Database[TupleRow], name: str) -> None:
        self._shard = shard
        self._own = None if settings is None else tuple_database(settings, name)

    def execute(self, statement: Statement, values: Mapping[str, Any]) -> psycopg.Cursor[TupleRow]:
        """The cursor. Raises MainUnavailable, and psycopg.Error."""
        if self._own is None:
            return self._shard().execute(statement, values)
        with asking_main():
            return self._own().execute(statement, values)

    def close(self) -> None:
        """Close the connection, if it is another one than the shard's."""
        if self._own is not None:
            self._own.close()
