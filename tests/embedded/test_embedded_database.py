"""The embedded PostgreSQL: starts, keeps, survives, and says what is wrong."""

import psycopg


def test_each_test_has_a_database_of_its_own(database: str, blank_database: str) -> None:
    assert database != blank_database
    with psycopg.connect(database) as one, psycopg.connect(blank_database) as other:
        assert one.execute("SELECT to_regnamespace('sluice') IS NOT NULL").fetchone() == (True,)
        assert other.execute("SELECT to_regnamespace('sluice') IS NULL").fetchone() == (True,)
