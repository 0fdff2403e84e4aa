"""Migrations: applied once, in order, by whichever process is first."""

from concurrent.futures import ThreadPoolExecutor

from connectors.postgres.migrate import available, migrate, missing


def test_many_processes_that_start_together_apply_each_migration_once(blank_database: str) -> None:
    """R1: one holds the lock and applies all, the others find nothing to do, and so does the next start."""
    names = [migration.name for migration in available()]
    assert missing(blank_database) == names
    with ThreadPoolExecutor(6) as pool:
        applied = list(pool.map(migrate, [blank_database] * 6))
    assert sorted(applied, key=len) == [[]] * 5 + [names]
    assert migrate(blank_database) == missing(blank_database) == []
