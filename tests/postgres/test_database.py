"""A connection that is opened on first use, and again when the server has ended it."""

from __future__ import annotations

import ast

import psycopg
import pytest

from connectors.postgres.connection import (
    NestedTransaction,
    dict_database,
    outside_transaction,
    own_transaction,
    tuple_database,
)
from schemas.settings import Settings
from tests.support import ROOT


def test_a_connection_that_was_ended_is_opened_again(database: str) -> None:
    """G1: what was being done is the caller's to do again; the next call has a connection."""
    settings = Settings(database=database)
    first, other = tuple_database(settings, "sluice one"), dict_database(settings, "sluice other")
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
    connection = tuple_database(
        Settings(database=database), "sluice prepared", opened=lambda db: db.execute("create temporary table kept ()")
    )
    for _ in range(2):
        assert connection().execute("select count(*) from kept").fetchone() == (0,)
        connection.close()


def test_a_server_that_is_not_there_is_an_error_of_the_call(database: str) -> None:
    nowhere = tuple_database(Settings(database="postgresql://nobody@127.0.0.1:1/none"), "sluice nowhere")
    with pytest.raises(psycopg.OperationalError):
        nowhere()
    nowhere.close()


def test_a_method_with_its_own_transaction_refuses_to_run_inside_another(database: str) -> None:
    """Its locks would last until the end of a transaction that it knows nothing of."""
    connection = tuple_database(Settings(database=database), "sluice outer")
    db = connection()
    with own_transaction(db):
        with pytest.raises(NestedTransaction), own_transaction(db):
            pass
        with pytest.raises(NestedTransaction):
            outside_transaction(db)
    assert outside_transaction(db) is db
    connection.close()


@pytest.mark.parametrize("folder", ["connectors", "appview", "flows", "control", "local", "ops", "cli"])
def test_no_store_lends_its_connection(folder: str) -> None:
    """Only the object that opened a connection may open transactions on it."""
    lent = [
        f"{path.name}:{node.lineno}"
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("connection", "_database", "_connection", "_db")
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "self")
        and not ast.unparse(node.func.value).endswith("pool")
    ]
    assert lent == []
