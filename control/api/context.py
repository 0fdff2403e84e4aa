"""What the handlers share: settings, health, pooled connections, and threads for blocking work.

`Context.run` uses THREADS threads and refuses work while WAITING calls are running or queued. The constructor does not connect.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool

from connectors.postgres.connection import Brief, network_options
from connectors.runtime.health import Health
from control.api.errors import Busy
from control.status import Collector, MirrorStatus
from schemas.settings import Settings
from schemas.sql import Statement

THREADS = 8
WAITING = 64
STATEMENT_SECONDS = 15
POOL_SECONDS = 5.0
CONNECT_SECONDS = 5
CLOSE_SECONDS = 2.0

P = ParamSpec("P")
T = TypeVar("T")


class Context:
    """One per application."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self.settings = settings
        self.health = health
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="api")
        self._waiting = 0
        self._opening = threading.Lock()
        self._pool: ConnectionPool[psycopg.Connection[Any]] | None = None
        self._collecting = threading.Lock()
        self._collector = Collector(settings)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a blocking function in a thread. Raises Busy."""
        if self._waiting >= WAITING:
            raise Busy
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        finally:
            self._waiting -= 1

    @contextmanager
    def db(self) -> Iterator[psycopg.Connection[Any]]:
        """A pooled connection in autocommit. Raises psycopg.OperationalError when the database does not answer in time."""
        with self._opening:
            if self._pool is None:
                self._pool = self._opened()
        with self._pool.connection() as connection:
            yield connection

    def rows(self, statement: Statement, values: dict[str, Any] | None = None) -> list[DictRow]:
        """Rows of a statement as dicts."""
        with self.db() as db, db.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, values).fetchall()

    def status(self) -> MirrorStatus:
        """The state of database and broker; collected by one caller at a time. Raises psycopg.Error and LogUnavailable."""
        with self._collecting:
            return self._collector.collect()

    def close(self) -> None:
        """End threads and connections without waiting for running calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            self._pool.close(timeout=CLOSE_SECONDS)

    def _opened(self) -> ConnectionPool[psycopg.Connection[Any]]:
        kwargs = {
            "autocommit": True,
            "application_name": "sluice api",
            **network_options(CONNECT_SECONDS),
            "options": f"-c statement_timeout={STATEMENT_SECONDS}s",
        }
        return ConnectionPool(
            self.settings.database,
            connection_class=Brief,
            kwargs=kwargs,
            min_size=0,
            max_size=THREADS,
            timeout=POOL_SECONDS,
            check=ConnectionPool.check_connection,
            name="api",
            open=True,
        )
