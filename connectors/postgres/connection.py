"""Connections to PostgreSQL with bounded waits. Autocommit; transactions are explicit.

libpq's options bound the connect and the detection of a dead network. `statement_seconds` bounds a statement; every
PROBE_SECONDS during one, a probe opens a new connection: a server that accepts none is not working on the statement either.
The waiting thread marks progress (connectors/runtime/watchdog.py). On a timeout or a failed probe the connection is closed and
psycopg.OperationalError raised.

`connect` is for short work, `Database` (`tuple_database`, `dict_database`) for a flow: it opens on first use and reopens after a loss. Sessions
of flows also bound waits for locks and idle transactions. `AsyncPool` is for concurrent tasks of one loop, and retries
statements while the database is unavailable.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, RowFactory, TupleRow, dict_row, tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from typing_extensions import override

from connectors.runtime import watchdog
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import Statement
from steps.backoff import backoff_seconds

R = TypeVar("R")
X = TypeVar("X")

CONNECT_SECONDS = 10
NETWORK = {  # of libpq: detect a dead peer within half a minute, both while waiting and while sending
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
PROBE_SECONDS = 20.0
PROBE_CONNECT_SECONDS = 5
STATEMENT_SECONDS = 600.0  # in a flow: removing the largest repo takes minutes
LOCK_SECONDS = 20
IDLE_SECONDS = 120  # in a transaction: its process is hung or suspended, and its locks block others
POOL_SECONDS = 10.0
POOL_IDLE_SECONDS = 60.0  # then a connection is closed: the server keeps 2 MB for each
POOL_STATEMENT_SECONDS = 30.0
CHECK_SECONDS = 1.0  # without an answer, after which a pooled connection costs a round trip before its next statement
OUTAGE_SECONDS = 300.0

REFUSALS = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, errors.ProgramLimitExceeded)
"""Errors caused by the data of one row. ProgramLimitExceeded: a row too large for an index; psycopg's OperationalError."""


class NestedTransaction(Exception):
    """A function with its own transaction was called inside another one: a bug."""


def outside_transaction(db: psycopg.Connection[R]) -> psycopg.Connection[R]:
    """The connection, checked to be outside any transaction. Raises NestedTransaction."""
    if db.info.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
        raise NestedTransaction("this function commits by itself; call it before or after the transaction")
    return db


@contextmanager
def own_transaction(db: psycopg.Connection[R]) -> Iterator[None]:
    """A transaction that commits, and releases its locks, at the end of the block. Raises NestedTransaction inside another."""
    with outside_transaction(db).transaction():
        yield


class Bounded(psycopg.Connection[R]):
    """A connection with bounded waits. `limit`: seconds per wait; None: as long as the server accepts probes."""

    limit: float | None = None
    url: str = ""

    @override
    def wait(self, gen: Generator[Any, Any, X], interval: float = 0.1, timeout: float | None = None) -> X:
        return super().wait(self._bounded(gen), interval, timeout)

    def _bounded(self, gen: Generator[Any, Any, X]) -> Generator[Any, Any, X]:
        began = time.monotonic()
        probe_at = began + PROBE_SECONDS
        try:
            state = next(gen)
            while True:
                ready = yield state
                watchdog.mark()
                now = time.monotonic()
                if self.limit is not None and now - began > self.limit:
                    raise self._silent(f"no answer within {self.limit:.0f} s")
                if now > probe_at:
                    self._probe()
                    probe_at = time.monotonic() + PROBE_SECONDS
                state = gen.send(ready)
        except StopIteration as end:
            return cast(X, end.value)

    def _probe(self) -> None:
        """Raise OperationalError if the server accepts no connection. A FATAL message means that the server is alive."""
        if not self.url:
            return
        try:
            psycopg.connect(self.url, application_name="sluice probe", **network_options(PROBE_CONNECT_SECONDS)).close()
        except psycopg.OperationalError as err:
            if "FATAL" not in str(err):
                raise self._silent(f"neither a statement nor a new connection is answered ({err})") from err

    def _silent(self, why: str) -> psycopg.OperationalError:
        self.pgconn.finish()
        return psycopg.OperationalError(why)


class Brief(Bounded[Any]):
    """A pooled connection for short statements. `answered_at`: time of the last answer (monotonic)."""

    limit = POOL_STATEMENT_SECONDS
    answered_at = float("-inf")

    @override
    def wait(self, gen: Generator[Any, Any, X], interval: float = 0.1, timeout: float | None = None) -> X:
        result = super().wait(gen, interval, timeout)
        self.answered_at = time.monotonic()
        return result

    @staticmethod
    def check(db: "Brief") -> None:
        """Raise OperationalError for a connection that was lost while idle (kill -9 of PostgreSQL)."""
        if time.monotonic() - db.answered_at > CHECK_SECONDS:
            ConnectionPool.check_connection(db)


def connect(
    url: str,
    name: str,
    rows: RowFactory[Any] = tuple_row,
    *,
    statement_seconds: float | None = None,
    **options: Any,
) -> psycopg.Connection[Any]:
    """An autocommit connection for short work. Raises psycopg.OperationalError."""
    given = {"application_name": name, **network_options(CONNECT_SECONDS), **options}
    made = Bounded[Any].connect(url, autocommit=True, row_factory=rows, **given)
    assert isinstance(made, Bounded)  # noqa: S101 - for the type checker
    made.url, made.limit = url, statement_seconds
    return made


def network_options(connect_timeout: int = CONNECT_SECONDS) -> dict[str, Any]:
    """libpq's network options of every connection."""
    return {"connect_timeout": connect_timeout, **NETWORK}


def _session(statement_seconds: float) -> str:
    """libpq's `options` for a flow's session: timeouts enforced by the server."""
    limits = {
        "statement_timeout": int(statement_seconds * 1000),
        "lock_timeout": LOCK_SECONDS * 1000,
        "idle_in_transaction_session_timeout": IDLE_SECONDS * 1000,
    }
    return " ".join(f"-c {key}={value}" for key, value in limits.items())


class Database(Generic[R]):
    """`database()` returns the connection, and opens or reopens it. For one thread at a time; `options` are psycopg's and libpq's.

    `opened` is called with every new connection, to set up session state. The caller repeats work that a lost connection
    interrupted (connectors/runtime/retry_database.py).
    """

    def __init__(
        self,
        url: str,
        name: str,
        rows: RowFactory[R],
        *,
        opened: Callable[[psycopg.Connection[R]], None] | None = None,
        statement_seconds: float = STATEMENT_SECONDS,
        **options: Any,
    ) -> None:
        self._url = url
        self._name = name
        self._rows = rows
        self._opened = opened
        self._seconds = statement_seconds
        self._options = options
        self._db: psycopg.Connection[R] | None = None

    def __call__(self) -> psycopg.Connection[R]:
        """The connection. Raises psycopg.OperationalError."""
        if self._db is None or self._db.closed or self._db.broken:
            given: dict[str, Any] = {"options": _session(self._seconds), **self._options}
            db = connect(self._url, self._name, self._rows, statement_seconds=self._seconds + LOCK_SECONDS, **given)
            try:
                if self._opened is not None:
                    self._opened(db)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def close(self) -> None:
        """Close the connection, if any."""
        if self._db is not None:
            self._db.close()


def tuple_database(settings: Settings, name: str, **options: Any) -> Database[TupleRow]:
    """A Database whose rows are tuples."""
    return Database(settings.database, name, tuple_row, **options)


def dict_database(settings: Settings, name: str, **options: Any) -> Database[DictRow]:
    """A Database whose rows are dicts."""
    return Database(settings.database, name, dict_row, **options)


class AsyncBounded(psycopg.AsyncConnection[TupleRow]):
    """An async connection whose waits end after POOL_STATEMENT_SECONDS. `answered_at`: time of the last answer (monotonic)."""

    answered_at = float("-inf")

    @override
    async def wait(self, gen: Generator[Any, Any, X], interval: float = 0.1, timeout: float | None = None) -> X:
        limit = POOL_STATEMENT_SECONDS if timeout is None else timeout
        try:
            result = await super().wait(gen, interval, limit)
        except errors._WaitTimeout as err:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {limit:.0f} s") from err
        self.answered_at = time.monotonic()
        return result

    @staticmethod
    async def check(db: "AsyncBounded") -> None:
        """Raise OperationalError for a connection that was lost while idle (kill -9 of PostgreSQL)."""
        if time.monotonic() - db.answered_at > CHECK_SECONDS:
            await AsyncConnectionPool.check_connection(db)


async def connect_async(url: str, name: str) -> psycopg.AsyncConnection[TupleRow]:
    """An async autocommit connection. Raises psycopg.OperationalError."""
    return await AsyncBounded.connect(
        url,
        autocommit=True,
        row_factory=tuple_row,
        application_name=name,
        options=_session(POOL_STATEMENT_SECONDS),
        **network_options(CONNECT_SECONDS),
    )


class AsyncPool:
    """A few connections for concurrent tasks of one loop. Opens on first use; close it in that loop.

    Each statement is its own transaction and must be safe to repeat: after an OperationalError it is retried for
    `outage_seconds`, then psycopg.OperationalError is raised.
    """

    def __init__(self, url: str, name: str, size: int, outage_seconds: float = OUTAGE_SECONDS) -> None:
        self._url = url
        self._name = name
        self._size = size
        self._outage_seconds = outage_seconds
        self._pool: AsyncConnectionPool[AsyncBounded] | None = None

    async def fetch(
        self, statement: Statement, values: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[tuple[Any, ...]]:
        """The rows of a statement; [] if it returns none."""

        async def work(db: AsyncBounded) -> list[tuple[Any, ...]]:
            cursor = await db.execute(statement, values or None)
            return await cursor.fetchall() if cursor.description else []

        return await self._patiently(work)

    def stats(self) -> dict[str, int]:
        """Statistics of psycopg_pool; empty before the first use."""
        return self._pool.get_stats() if self._pool is not None else {}

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.close(timeout=POOL_SECONDS)
            self._pool = None

    async def _patiently(self, work: Callable[[AsyncBounded], Awaitable[X]]) -> X:
        began, failures = time.monotonic(), 0
        while True:
            try:
                pool = await self._opened()
                async with pool.connection() as db:
                    return await work(db)
            except psycopg.OperationalError as err:
                if isinstance(err, errors.ProgramLimitExceeded) or time.monotonic() - began >= self._outage_seconds:
                    raise
                failures += 1
                await asyncio.sleep(backoff_seconds(failures, 0.2, 5.0, growth=4.0))

    async def _opened(self) -> AsyncConnectionPool[AsyncBounded]:
        if self._pool is None:
            pool = AsyncConnectionPool(
                self._url,
                connection_class=AsyncBounded,
                min_size=0,
                max_size=self._size,
                max_idle=POOL_IDLE_SECONDS,
                open=False,
                timeout=POOL_SECONDS,
                check=AsyncBounded.check,
                kwargs={
                    "autocommit": True,
                    "application_name": self._name,
                    "options": _session(POOL_STATEMENT_SECONDS),
                    **network_options(CONNECT_SECONDS),
                },
            )
            self._pool = pool
            await pool.open()
        return self._pool


NO_URL = "not a PostgreSQL URL (postgresql://USER@HOST/NAME)"


def check_database(settings: Settings, setting: str = "SLUICE_DATABASE") -> None:
    """Raise OperatorError if the database does not answer. `setting`: the setting or option with its URL, for the message."""
    try:
        connect(settings.database, "sluice check").close()
    except psycopg.Error as err:
        reason = " ".join(str(err).split())
        if isinstance(err, psycopg.ProgrammingError):  # libpq could not parse it as "key=value ..."
            reason = NO_URL
        raise OperatorError(f"{setting}: {reason}; start PostgreSQL there or correct the URL") from err
