"""No wait without an end: the calls that block are bounded where they are made, or are made in one place that bounds them."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from unittest.mock import AsyncMock, Mock

import psutil
import psycopg
import pytest
from psycopg import errors
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from connectors.postgres import connection as database
from connectors.postgres.connection import AsyncPool, connect, tuple_database
from connectors.postgres.pooled_calls import PooledCalls
from local.embedded.embedded_database import EmbeddedDatabase
from schemas.settings import Settings
from tests.support import ROOT
from tests.support.flow_process import suspend

FOLDERS = ("connectors", "appview", "flows", "serve", "control", "local", "ops", "cli")
UNBOUNDED = {"result", "join", "wait", "acquire", "flush", "list_topics", "getconn", "communicate"}
"""Methods that block without a limit when they are called without an argument."""
BOUNDED_BY_ARGUMENT = {"committed", "get_watermark_offsets", "position", "offsets_for_times"}
CLIENTS = ("consumer", "reader", "producer", "client")
"""Words in the names of what librdkafka's methods are called on."""
ALLOWED = {  # (module, function): why no argument is needed
    ("connectors/runtime/background_loop.py", "put"): "a coroutine",
    ("connectors/identity/key_lookups.py", "_patient"): "done",
    ("connectors/atproto/deferred_events.py", "run_to_end"): "KeyRing.wait has a time of its own",
    ("connectors/atproto/stream_sockets.py", "_watch"): "a task that is done",
    ("connectors/identity/resolver.py", "_ask_all"): "tasks that are done",
    ("flows/backfill/task_feed.py", "take"): "a task that is done",
    ("serve/stream/client.py", "run"): "tasks that are done",
    ("local/children/supervisor.py", "record_end"): "Child.join is bounded",
    ("local/children/supervisor.py", "drain"): "Child.join is bounded",
    ("control/page/poller.py", "_run"): "within wait_for",
    ("cli/topics.py", "_serve"): "a command that serves until Ctrl-C",
}


def _unbounded() -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            tree = ast.parse(path.read_text("utf-8"))
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from _in_function(name, function)


def _in_function(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    awaited = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Await)}
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or id(node) in awaited:
            continue
        method, given = node.func.attr, bool(node.args or node.keywords)
        named = {keyword.arg for keyword in node.keywords}
        owner = node.func.value
        why = ""
        of_client = any(word in ast.unparse(owner) for word in CLIENTS)
        if (
            method in UNBOUNDED - (set() if of_client else {"flush"})
            and not given
            and (name, function.name) not in ALLOWED
        ):
            why = f".{method}() without a time"
        elif method in BOUNDED_BY_ARGUMENT and of_client and "timeout" not in named:
            why = f".{method}(…) without timeout="
        elif method == "commit" and any(
            keyword.arg == "asynchronous" and getattr(keyword.value, "value", None) is False
            for keyword in node.keywords
        ):
            why = "a synchronous commit"
        elif (
            method == "connect"
            and isinstance(owner, ast.Name)
            and owner.id == "psycopg"
            and name != "connectors/postgres/connection.py"
        ):
            why = "psycopg.connect: use connectors.postgres.connection.connect"
        elif method == "close" and isinstance(owner, ast.Name | ast.Attribute) and "consumer" in ast.unparse(owner):
            why = "consumer.close(): use connectors.kafka.client.close" if "GroupConsumer" not in _source(name) else ""
        if why:
            yield f"{name}:{node.lineno} {function.name}: {why}"


def _source(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_no_call_waits_without_an_end() -> None:
    """H1, G10: no call into a library or the network without a deadline of ours."""
    assert list(dict.fromkeys(_unbounded())) == []


def test_the_search_finds_what_it_searches() -> None:
    found = ast.parse(
        "def f(x, consumer):\n x.result()\n consumer.commit(asynchronous=False)\n psycopg.connect('')\n"
    ).body[0]
    assert isinstance(found, ast.FunctionDef)
    assert len(list(_in_function("control/x.py", found))) == 3


@pytest.fixture
def settings(private_postgres: EmbeddedDatabase) -> Settings:
    return Settings(database=private_postgres.url)


def _stop(server: EmbeddedDatabase, signalled: Callable[[int], None]) -> None:
    """The postmaster and all that it has started; a process in a guard of its own is found by the data folder."""
    assert server.pid is not None
    guard = psutil.Process(server.pid)
    for one in (guard, *guard.children(recursive=True)):
        with suppress(ProcessLookupError, FileNotFoundError):  # a session that has ended since
            signalled(one.pid)


def test_a_wait_for_a_suspended_database_ends(
    private_postgres: EmbeddedDatabase, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1: its kernel still answers for the network, so nothing but a deadline of ours ends the wait."""
    monkeypatch.setattr(database, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(database, "PROBE_CONNECT_SECONDS", 2)
    connection = tuple_database(settings, "sluice frozen")
    assert connection().execute("select 1").fetchone() == (1,)
    _stop(private_postgres, suspend)
    try:
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            connection().execute("select 2")
        assert 0.5 < time.monotonic() - began < 20  # it was the probe, and it was in time
    finally:
        _stop(private_postgres, lambda pid: os.kill(pid, signal.SIGCONT))
    assert connection().execute("select 3").fetchone() == (3,)
    connection.close()


def test_a_long_statement_of_a_server_that_lives_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration builds an index for hours: the server takes the probes meanwhile."""
    monkeypatch.setattr(database, "PROBE_SECONDS", 0.2)
    with connect(settings.database, "sluice migrate") as db:
        assert db.execute("select pg_sleep(1.5)::text").fetchone() == ("",)


def test_a_statement_and_a_lock_have_their_limits(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: a lock that another session holds is a reason to try again, not to hang."""
    monkeypatch.setattr(database, "LOCK_SECONDS", 1)
    flow = tuple_database(settings, "sluice flow", statement_seconds=2.0)
    with connect(settings.database, "holder") as holder, holder.transaction():
        holder.execute("create table held ()")
        flow()  # before anything is held
        holder.execute("select pg_advisory_xact_lock(7)")
        with pytest.raises(errors.LockNotAvailable):
            flow().execute("select pg_advisory_xact_lock(7)")
    with pytest.raises(errors.QueryCanceled):
        flow().execute("select pg_sleep(60)")
    assert flow().execute("select 1").fetchone() == (1,)
    flow.close()


def test_dead_pooled_connections_are_not_handed_out(private_postgres: EmbeddedDatabase) -> None:
    """H1: backfill ended on one, three minutes after a kill -9 of PostgreSQL."""

    async def main() -> None:
        pool = AsyncPool(private_postgres.url, "sluice pool", 2)
        assert await pool.fetch(b"select %s::int", (1,)) == [(1,)]
        private_postgres.kill()
        assert not private_postgres.running  # the fault fired
        waiting = asyncio.create_task(pool.fetch(b"select %s::int", (2,)))
        await asyncio.to_thread(private_postgres.start)
        assert await waiting == [(2,)]  # asked while it was away
        await pool.close()

    asyncio.run(main())


def test_a_pooled_connection_is_checked_only_after_it_was_idle(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check is a round trip: it doubled those of every look-up of a DID."""
    check = AsyncMock()
    monkeypatch.setattr(AsyncConnectionPool, "check_connection", check)
    monkeypatch.setattr(database, "CHECK_SECONDS", 60.0)

    async def main() -> None:
        pool = AsyncPool(settings.database, "sluice pool", 1)
        for _ in range(3):
            await pool.fetch(b"select 1")
        assert check.await_count <= 1, "of a connection that has just answered"
        check.reset_mock()
        monkeypatch.setattr(database, "CHECK_SECONDS", 0.0)
        await pool.fetch(b"select 1")
        assert check.await_count == 1
        await pool.close()

    asyncio.run(main())


def test_a_pooled_connection_of_a_server_is_checked_only_after_it_was_idle(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the page, the API and `serve`."""
    check = Mock()
    monkeypatch.setattr(ConnectionPool, "check_connection", check)
    monkeypatch.setattr(database, "CHECK_SECONDS", 60.0)
    calls = PooledCalls(settings, "test")
    for _ in range(3):
        calls.rows(b"select 1")
    assert check.call_count <= 1, "of a connection that has just answered"
    check.reset_mock()
    monkeypatch.setattr(database, "CHECK_SECONDS", 0.0)
    calls.rows(b"select 1")
    assert check.call_count == 1
    calls.close()


def test_a_pool_bridges_an_outage_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "POOL_SECONDS", 0.2)

    async def main() -> None:
        impatient = AsyncPool("postgresql://nobody@127.0.0.1:1/none", "sluice pool", 1, outage_seconds=0.0)
        with pytest.raises(psycopg.OperationalError):
            await impatient.fetch(b"select 1")
        await impatient.close()

    asyncio.run(main())
