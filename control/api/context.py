"""What the handlers share: settings, health, pooled connections, and threads for blocking work.

`Context.run` uses THREADS threads and refuses work while WAITING calls are running or queued. The constructor does not connect.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from typing import Any, ParamSpec, TypeVar

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool

from connectors.postgres.connection import Brief, network_options
from connectors.postgres.shards import Shards, with_main
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
Pool = ConnectionPool[psycopg.Connection[Any]]
T = TypeVar("T")


class Context:
    """One per application."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self.settings = settings
        self.health = health
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="api")
        self._waiting = 0
        self._opening = threading.Lock()
        self._pools: tuple[Pool, Shards[Pool]] | None = None  # of the main database, and of the shards
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
        main_pool, _ = self._opened()
        with main_pool.connection() as connection:
            yield connection

    def rows(self, statement: Statement, values: dict[str, Any] | None = None) -> list[DictRow]:
        """Rows of a statement as dicts."""
        with self.db() as db, db.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(statement, values).fetchall()

    def repo(self, statement: Statement, did: str, **values: Any) -> list[DictRow]:
        """Rows of a statement about one repo."""
        shards = self._opened()[1]
        return shards.call(shards.number_of(did), lambda pool: _rows(pool, statement, values | {"did": did}))

    def repos(self, statement: Statement, values: dict[str, Any]) -> list[DictRow]:
        """A page of a statement about repos, in DID order. Every shard must answer."""
        found = self._opened()[1].every(lambda pool: _rows(pool, statement, values))
        return sorted(chain(*found), key=itemgetter("did"))[: values["limit"]]

    def status(self) -> MirrorStatus:
        """The state of database and broker; collected by one caller at a time. Raises psycopg.Error and LogUnavailable."""
        with self._collecting:
            return self._collector.collect()

    def close(self) -> None:
        """End threads and connections without waiting for running calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._pools is not None:
            for pool in (self._pools[0], *self._pools[1].all()):
                pool.close(timeout=CLOSE_SECONDS)

    def _opened(self) -> tuple[Pool, Shards[Pool]]:
        with self._opening:
            if self._pools is None:
                self._pools = with_main(self.settings, _pool)
            return self._pools


def _pool(settings: Settings) -> Pool:
    kwargs = {
        "autocommit": True,
        "application_name": "sluice api",
        **network_options(CONNECT_SECONDS),
        "options": f"-c statement_timeout={STATEMENT_SECONDS}s",
    }
    return ConnectionPool(
        settings.database,
        connection_class=Brief,
        kwargs=kwargs,
        min_size=0,
        max_size=THREADS,
        timeout=POOL_SECONDS,
        check=ConnectionPool.check_connection,
        name="api",
        open=True,
    )


def _rows(pool: Pool, statement: Statement, values: dict[str, Any]) -> list[DictRow]:
    with pool.connection() as db, db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values).fetchall()
