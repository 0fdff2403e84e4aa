"""Database calls of a server: pooled connections to the main database and to the shards, and threads for blocking calls.

`PooledCalls.run` uses THREADS threads and refuses work while WAITING calls are running or queued. The constructor does not connect.
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
from schemas.settings import Settings
from schemas.sql import Statement

THREADS = 8
WAITING = 64
STATEMENT_SECONDS = 15
POOL_SECONDS = 5.0
CONNECT_SECONDS = 5
CLOSE_SECONDS = 2.0

P = ParamSpec("P")
Pool = ConnectionPool[Brief]
T = TypeVar("T")


class TooManyCalls(Exception):
    """WAITING calls are running or queued."""


class PooledCalls:
    """One per server. `name`: of its threads, pools and connections."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self._name = name
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
        self._waiting = 0
        self._opening = threading.Lock()
        self._pools: tuple[Pool, Shards[Pool]] | None = None  # of the main database, and of the shards

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a blocking function in a thread. Raises TooManyCalls."""
        if self._waiting >= WAITING:
            raise TooManyCalls
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        finally:
            self._waiting -= 1

    @contextmanager
    def db(self) -> Iterator[psycopg.Connection[Any]]:
        """A pooled connection in autocommit. Raises psycopg.OperationalError when the database does not answer in time."""
        with self.main_pool.connection() as connection:
            yield connection

    def rows(self, statement: Statement, values: dict[str, Any] | None = None) -> list[DictRow]:
        """Rows of a statement as dicts."""
        return _rows(self.main_pool, statement, values or {})

    def repo(self, statement: Statement, did: str, **values: Any) -> list[DictRow]:
        """Rows of a statement about one repo."""
        number = self.shards.number_of(did)
        return self.shards.call(number, lambda pool: _rows(pool, statement, values | {"did": did}))

    def repos(self, statement: Statement, values: dict[str, Any]) -> list[DictRow]:
        """A page of a statement about repos, in DID order. Every shard must answer."""
        return sorted(chain(*self.every(statement, values)), key=itemgetter("did"))[: values["limit"]]

    def every(self, statement: Statement, values: dict[str, Any]) -> list[list[DictRow]]:
        """The rows of each shard. Every shard must answer."""
        return self.shards.every(lambda pool: _rows(pool, statement, values))

    @property
    def main_pool(self) -> Pool:
        """Connections to the main database."""
        return self._opened()[0]

    @property
    def shards(self) -> Shards[Pool]:
        """Connections to each shard; without SLUICE_SHARDS the main database is the only one."""
        return self._opened()[1]

    def close(self) -> None:
        """End threads and connections without waiting for running calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._pools is not None:
            for pool in (self._pools[0], *self._pools[1].all()):
                pool.close(timeout=CLOSE_SECONDS)

    def _opened(self) -> tuple[Pool, Shards[Pool]]:
        with self._opening:
            if self._pools is None:
                self._pools = with_main(self.settings, self._pool)
            return self._pools

    def _pool(self, settings: Settings) -> Pool:
        kwargs = {
            "autocommit": True,
            "application_name": f"sluice {self._name}",
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
            check=Brief.check,
            name=self._name,
            open=True,
        )


def _rows(pool: Pool, statement: Statement, values: dict[str, Any]) -> list[DictRow]:
    with pool.connection() as db, db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values).fetchall()
