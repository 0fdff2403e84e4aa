"""Migrations: applied once, in order, by whichever process is first."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from connectors.postgres.migrate import Migration, MigrationError, _apply, available, migrate, missing
from schemas.sql import queries
from tests.support.flow_process import wait_until


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


def test_a_migration_of_records_and_repos_waits_for_a_running_transaction_of_the_index(database: str) -> None:
    """U1: it had locked the records and waited for a repo of the transaction, which then waited for the records: a deadlock."""
    change = "alter table sluice.record_row add column tier smallint; alter table sluice.repo add column tier smallint"
    waiting = (
        "select count(*) from pg_stat_activity where application_name = 'sluice migrate' and wait_event_type = 'Lock'"
    )
    with (
        psycopg.connect(database, autocommit=True) as other,
        psycopg.connect(database, autocommit=True) as index,
        psycopg.connect(database, autocommit=True, application_name="sluice migrate") as migrating,
        ThreadPoolExecutor(1) as pool,
    ):
        other.execute("insert into sluice.repo (did) values ('did:plc:a')")
        with index.transaction():
            index.execute(queries("filter")["fence"])
            index.execute(queries("index")["lock"], {"dids": ["did:plc:a"]})
            applied = pool.submit(_apply, migrating, Migration("m9000_wider.sql", change, transactional=True))
            wait_until(lambda: other.execute(waiting).fetchone() == (1,), 30)
            index.execute("lock table sluice.record_row in row exclusive mode")
        assert applied.result(30)
        assert other.execute("select tier from sluice.repo").fetchall() == [(None,)]
