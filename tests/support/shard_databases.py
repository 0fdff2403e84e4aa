"""A main database and two shards, for tests of repos in several databases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from connectors.postgres import shard_identity
from connectors.postgres.repo_queue import RepoQueue
from connectors.postgres.shard_identity import prepare_shards
from connectors.postgres.sharded_queue import repo_queue
from local.embedded.guarded_process import free_port
from schemas.settings import Settings
from schemas.shard_ranges import shard_ranges
from steps.partitioner import partition_of
from tests.support.postgres import fresh_database

BASE32 = str.maketrans("0189", "wxyz")
DIDS = sorted(f"did:plc:{hashlib.sha256(bytes([number])).hexdigest()[:24].translate(BASE32)}" for number in range(60))
BY_SHARD = [[did for did in DIDS if partition_of(did, 8) in span] for span in (range(3), range(3, 8))]


@pytest.fixture
def sharded(database: str, postgres: str, migrated_template: str) -> Iterator[Settings]:
    """A main database and two shards with names."""
    with ExitStack() as closing:
        urls = [closing.enter_context(fresh_database(postgres, migrated_template)) for _ in range(2)]
        made = Settings(database=database, shards=f"0-2={urls[0]} 3-7={urls[1]}", kafka_partitions=8)
        prepare_shards(made)
        yield made


@pytest.fixture
def queue(sharded: Settings) -> Iterator[RepoQueue]:
    """The repos of both shards."""
    made = repo_queue(sharded)
    yield made
    made.close()


def nowhere() -> str:
    """The URL of a server that does not answer."""
    return f"postgresql://u@127.0.0.1:{free_port()}/x"


def half(settings: Settings) -> Settings:
    """The same, while the second shard does not answer."""
    return checked(settings.replaced(shards=f"{settings.shards.split()[0]} 3-7={nowhere()}"))


def checked(settings: Settings) -> Settings:
    """This process has found the shards to be the right ones."""
    shard_identity._checked.update((settings.database, one.url) for one in shard_ranges(settings.shards))
    return settings


def urls_of(settings: Settings) -> list[str]:
    return [one.url for one in shard_ranges(settings.shards)]


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
