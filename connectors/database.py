"""One connection to PostgreSQL that is opened on first use, and again when it is gone. Autocommit; transactions are explicit.

What was being done when a connection broke is its user's to do again: nothing is retried here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, RowFactory, TupleRow, dict_row, tuple_row

from schemas.settings import Settings

R = TypeVar("R")

REFUSALS = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, errors.ProgramLimitExceeded)
"""What a row of its own makes the database say; a row too large for an index is one, though psycopg calls it operational."""


class NestedTransaction(Exception):
    """A function that commits by itself was called inside a transaction: an error of ours."""


def alone(db: psycopg.Connection[R]) -> psycopg.Connection[R]:
    """The connection, outside any transaction: each statement commits by itself. Raises NestedTransaction."""
    if db.info.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
        raise NestedTransaction("this function commits by itself; call it before or after the transaction")
    return db


@contextmanager
def own_transaction(db: psycopg.Connection[R]) -> Iterator[None]:
    """A transaction that commits where the block ends, so its locks end there. Raises NestedTransaction inside another."""
    with alone(db).transaction():
        yield


class Database(Generic[R]):
    """`database()` is the connection. Used by one thread at a time; `options` are psycopg's and libpq's.

    `opened` is given every new connection before anyone else: what a session keeps has to be made again.
    """

    def __init__(
        self,
        url: str,
        name: str,
        rows: RowFactory[R],
        *,
        opened: Callable[[psycopg.Connection[R]], None] | None = None,
        **options: Any,
    ) -> None:
        self._url = url
        self._rows = rows
        self._opened = opened
        self._options = {"application_name": name, **options}
        self._db: psycopg.Connection[R] | None = None

    def __call__(self) -> psycopg.Connection[R]:
        """The connection. Raises psycopg.OperationalError."""
        if self._db is None or self._db.closed or self._db.broken:
            db = psycopg.connect(self._url, autocommit=True, row_factory=self._rows, **self._options)
            if self._opened is not None:
                self._opened(db)
            self._db = db
        return self._db

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._db is not None:
            self._db.close()


def tuples(settings: Settings, name: str, **options: Any) -> Database[TupleRow]:
    """A connection whose rows are tuples."""
    return Database(settings.database, name, tuple_row, **options)


def dicts(settings: Settings, name: str, **options: Any) -> Database[DictRow]:
    """A connection whose rows are dicts of their columns."""
    return Database(settings.database, name, dict_row, **options)
