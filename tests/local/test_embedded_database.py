"""The embedded PostgreSQL: starts, keeps, survives, and says what is wrong."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import psycopg
import pytest

from local.embedded.embedded_database import DatabaseUnavailable, EmbeddedDatabase
from tests.support.postgres import data_folder


def test_each_test_has_a_database_of_its_own(database: str, blank_database: str) -> None:
    assert database != blank_database
    with psycopg.connect(database) as one, psycopg.connect(blank_database) as other:
        assert one.execute("SELECT to_regnamespace('sluice') IS NOT NULL").fetchone() == (True,)
        assert other.execute("SELECT to_regnamespace('sluice') IS NULL").fetchone() == (True,)


def test_committed_rows_address_and_settings_survive_kill_9(private_postgres: EmbeddedDatabase) -> None:
    """G1: what was committed is there after SIGKILL of the postmaster, at the same address."""
    url = private_postgres.url
    with psycopg.connect(url) as client:
        client.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
    open_transaction = psycopg.connect(url)
    open_transaction.execute("INSERT INTO kept VALUES (1001)")
    killed = private_postgres.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    while private_postgres.running:
        time.sleep(0.01)
    assert private_postgres.start() == url
    assert private_postgres.pid != killed
    with psycopg.connect(url) as client:
        assert client.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
        durable = client.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')").fetchone()
        assert durable == ("on", "on")
        sorted_bytewise = client.execute("SELECT 'Z' < 'a', 'a-' < 'aa', upper('é') = 'É'").fetchone()
        assert sorted_bytewise == (True, True, True)
    open_transaction.close()


def test_stop_ends_open_sessions_and_keeps_the_rows(private_postgres: EmbeddedDatabase) -> None:
    url = private_postgres.url
    lingering = psycopg.connect(url, autocommit=True)
    lingering.execute("CREATE TABLE kept AS SELECT 1 AS number")
    private_postgres.stop()
    assert not private_postgres.running
    assert private_postgres.pid is None
    assert private_postgres.start() == url
    with psycopg.connect(url) as client:
        assert client.execute("SELECT number FROM kept").fetchone() == (1,)
    lingering.close()


def test_a_connection_needs_the_password(private_postgres: EmbeddedDatabase) -> None:
    host, port = private_postgres.address
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host=host, port=port, user="sluice", dbname="sluice", passfile="/dev/null")
    password = private_postgres.data_dir / "password"
    assert password.stat().st_mode & 0o077 == 0


def test_an_incomplete_cluster_is_made_again() -> None:
    with data_folder() as folder:
        (folder / "half" / "pgdata.draft" / "base").mkdir(parents=True)
        (folder / "half" / "initdb.password").touch()
        with EmbeddedDatabase(folder / "half") as server, psycopg.connect(server.url) as client:
            assert client.execute("SELECT 1").fetchone() == (1,)


def test_an_occupied_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        with pytest.raises(DatabaseUnavailable) as refusal:
            EmbeddedDatabase(tmp_path / "db", port=port).start()
    assert f"port {port} on 127.0.0.1 is occupied" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_wrong_setting_is_one_line() -> None:
    with data_folder() as folder, pytest.raises(DatabaseUnavailable, match="no_such_setting") as refusal:
        EmbeddedDatabase(folder / "db", settings={"no_such_setting": "1"}).start()
    assert "\n" not in str(refusal.value)
