"""Fixtures of the database: a PostgreSQL for the session, a migrated database for each test, a server to kill.

`SLUICE_TEST_CONTAINERS=1` with a container engine at hand runs the session's server as a container instead.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from fix_log import containers_wanted

from connectors.migrations import migrate
from simulator.embedded_database import EmbeddedDatabase

TEMPLATE = "sluice_template"


def url_of(server_url: str, database: str) -> str:
    """The same server and user, another database."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))


@contextmanager
def fresh_database(server_url: str, template: str = "template1") -> Iterator[str]:
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield url_of(server_url, name)
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def data_folder() -> Iterator[Path]:
    """A folder outside pytest's own: every pytest that starts closes those to other users, and PostgreSQL runs as one."""
    with tempfile.TemporaryDirectory(prefix="sluice-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of the session's server (superuser, maintenance database)."""
    if not containers_wanted():
        with data_folder() as folder, EmbeddedDatabase(folder / "postgres") as server:
            yield server.url
        return
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer("postgres:18", driver=None) as server:
        yield server.get_connection_url()


@pytest.fixture(scope="session")
def migrated_template(postgres: str) -> str:
    """Name of a database with every migration applied, to be cloned. Migrations run once in a session."""
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {TEMPLATE}")
    migrate(url_of(postgres, TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database(postgres: str, migrated_template: str) -> Iterator[str]:
    """URL of a fresh, migrated database; dropped after the test."""
    with fresh_database(postgres, migrated_template) as url:
        yield url


@pytest.fixture
def blank_database(postgres: str) -> Iterator[str]:
    """URL of a fresh, empty database (for tests of the migrations themselves)."""
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
def private_postgres() -> Iterator[EmbeddedDatabase]:
    """A running server of this test's own, to be killed and restarted at will. Its database is not migrated."""
    with data_folder() as folder, EmbeddedDatabase(folder / "postgres", settings={"shared_buffers": "64MB"}) as server:
        yield server
