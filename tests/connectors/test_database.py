"""A connection that is opened on first use, and again when the server has ended it."""

from __future__ import annotations

import psycopg
import pytest

from connectors.database import dicts, tuples
from schemas.settings import Settings


def test_a_connection_that_was_ended_is_opened_anew(database: str) -> None:
    """G1: what was being done is the caller's to do again; the next call has a connection."""
    settings = Settings(database=database)
    first, other = tuples(settings, "sluice one"), dicts(settings, "sluice other")
    pid = first().info.backend_pid
    assert first().info.backend_pid == pid
    assert other().execute("select pg_terminate_backend(%s) as ended", (pid,)).fetchone() == {"ended": True}
    with pytest.raises(psycopg.OperationalError):
        first().execute("select 1")
    assert first().execute("select current_setting('application_name')").fetchone() == ("sluice one",)
    assert first().info.backend_pid != pid
    first.close()
    other.close()
    assert first().execute("select 1").fetchone() == (1,)
    first.close()


def test_every_new_connection_is_prepared_before_it_is_used(database: str) -> None:
    """G1: what a session keeps (a temporary table, a lock) is made again in the next one."""
    connection = tuples(
        Settings(database=database), "sluice prepared", opened=lambda db: db.execute("create temporary table kept ()")
    )
    for _ in range(2):
        assert connection().execute("select count(*) from kept").fetchone() == (0,)
        connection.close()


def test_a_server_that_is_not_there_is_an_error_of_the_call(database: str) -> None:
    nowhere = tuples(Settings(database="postgresql://nobody@127.0.0.1:1/none"), "sluice nowhere")
    with pytest.raises(psycopg.OperationalError):
        nowhere()
    nowhere.close()
