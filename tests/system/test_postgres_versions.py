"""docs/compatibility.md: a whole mirror on every release of PostgreSQL that it names beside the one of all other tests."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.support.postgres import NEWEST, OLDER, ROOT, database_server, fresh_database
from tests.support.size import sized
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("major", sized(sorted(OLDER)[:1], sorted(OLDER)))
def test_a_mirror_on_an_older_postgres(simulator: Any, log: str, mirror: Any, major: str) -> None:
    """U1: migrations, every process, the AppView's tables, the audit; in the end the tables are the network."""
    simulation = simulator(seed=15, repos=40, records_per_repo=12, labels=30, churn=0.03, writer_rate=20)
    with database_server(major) as server, fresh_database(server) as database:
        with psycopg.connect(database) as db:
            assert db.info.server_version // 10_000 == int(major)
        one: Mirror = mirror(
            simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix(), appview=True
        )
        one.up()
        wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 30, 120, one.last_lines)
        one.quiesce()
        one.await_truth(120)
        unfolded = "select count(*) from sluice.appview_dirty"  # counts follow soon after the transaction
        wait_for(lambda: one.query(unfolded) == [(0,)], 120, one.last_lines)
        for command in (["audit", "--all", "--json"], ["appview", "check"], ["status"]):
            done = one.cli(*command)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert one.interrupt() == 0


def test_the_page_names_the_releases_that_are_tested() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    section = page.partition("## PostgreSQL")[2].partition("\n## ")[0]
    assert f"{', '.join(sorted(OLDER))} and {NEWEST}" in section
