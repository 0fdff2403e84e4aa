"""The databases of this folder have the projection's extension and indexes: to create them takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from appview.state import begin
from schemas.settings import load
from tests.support.postgres import fresh_database, url_of

TEMPLATE = "appview_template"


@pytest.fixture(scope="session")
def appview_template(postgres: str, migrated_template: str) -> str:
    """Name of a migrated database with the projection switched on, to be cloned."""
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"create database {TEMPLATE} template {migrated_template}".encode())
    begin(load(database=url_of(postgres, TEMPLATE), appview=True))
    return TEMPLATE


@pytest.fixture
def database(postgres: str, appview_template: str) -> Iterator[str]:
    """URL of a fresh database with the projection switched on."""
    with fresh_database(postgres, appview_template) as url:
        yield url


@pytest.fixture
def plain_database(postgres: str, migrated_template: str) -> Iterator[str]:
    """URL of a fresh, migrated database, which has never had the projection."""
    with fresh_database(postgres, migrated_template) as url:
        yield url
