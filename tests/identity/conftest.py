"""The tests of this folder share one database: most of them need an empty table of identities or of handles, nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from connectors.identity.key_ring import KeyRing
from connectors.runtime.health import Health
from schemas.settings import Settings
from tests.identity.plc_directory import Directory
from tests.support.postgres import fresh_database


@pytest.fixture(scope="package")
def shared_database(postgres: str, migrated_template: str) -> Iterator[str]:
    with fresh_database(postgres, migrated_template) as url:
        yield url


@pytest.fixture
def database(shared_database: str) -> str:
    """URL of the database, with both tables empty."""
    with psycopg.connect(shared_database, autocommit=True) as db:
        db.execute("truncate sluice.identity, sluice.handle")
    return shared_database


@pytest.fixture
def directory() -> Iterator[Directory]:
    one = Directory()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture
def ring(directory: Directory, database: str) -> Iterator[KeyRing[str | None]]:
    settings = Settings(database=database, plc=directory.url, allow_private_hosts=True)
    one = KeyRing(settings, Health("firehose"), lambda document: document.signing_key)
    yield one
    one.close()
