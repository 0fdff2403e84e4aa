"""Migrations: applied once, in order, by whichever process is first."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from connectors.postgres.migrate import MigrationError, available, migrate, missing


def test_many_processes_that_start_together_apply_each_migration_once(blank_database: str) -> None:
    """R1: one holds the lock and applies all, the others find nothing to do, and so does the next start."""
    names = [migration.name for migration in available()]
    assert missing(blank_database) == names
    with ThreadPoolExecutor(6) as pool:
        applied = list(pool.map(migrate, [blank_database] * 6))
    assert sorted(applied, key=len) == [[]] * 5 + [names]
    assert migrate(blank_database) == missing(blank_database) == []


def test_a_database_of_0_1_is_refused_with_the_way_out(blank_database: str) -> None:
    """U1: its tables cannot be upgraded; the log is replayed into a new database."""
    with psycopg.connect(blank_database, autocommit=True) as db:
        db.execute(
            "create schema sluice; create table sluice.migration (name text primary key, checksum text not null)"
        )
        db.execute("insert into sluice.migration values ('0001_sluice.sql', 'x')")
    for call in (migrate, missing):
        with pytest.raises(MigrationError, match=r"release 0\.1.*sluice replay --all --into URL"):
            call(blank_database)
