"""Repos on three database servers: one is killed, the others go on; at the end each repo is right, and SQL sees them all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from local.embedded.embedded_database import EmbeddedDatabase
from tests.support.mirror_truth import difference
from tests.support.postgres import FAST, FEW_PARTS, data_folder
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance

RANGES = ("0-2", "3-5", "6-7")  # of 8 partitions
RECORDS = """
select uri, cid, rev, json::text, raw, reason from sluice.record
where did in (select did from sluice.repo where phase = 'sync')
"""
SYNCED = "select count(*) from sluice.repo where phase = 'sync'"


@pytest.fixture
def servers() -> Iterator[list[EmbeddedDatabase]]:
    """Three running servers with empty databases."""
    with (
        data_folder() as folder,
        EmbeddedDatabase(folder / "a", settings=FAST) as a,
        EmbeddedDatabase(folder / "b", settings={"shared_buffers": "64MB"}) as b,  # the one to be killed: durable
        EmbeddedDatabase(folder / "c", settings=FAST) as c,
    ):
        yield [a, b, c]


def test_three_servers_are_one_mirror_and_two_go_on_without_the_third(
    simulator: Any, log: str, blank_database: str, database: str, servers: list[EmbeddedDatabase], mirror: Any
) -> None:
    """S10: each repo equals the network, SQL sees all of them, and one database filled from the same log has the same rows."""
    slow = {"pds_slow": {"seconds": 0.4}}  # so that repos are left to fetch when the server is killed
    simulation = simulator(
        seed=91, repos=240, records_per_repo=8, labels=60, churn=0.02, inactive_share=0.0, faults=slow, writer_rate=30
    )
    urls = [server.url + FEW_PARTS for server in servers]
    shards = " ".join(f"{name}={url}" for name, url in zip(RANGES, urls, strict=True))
    one: Mirror = mirror(
        simulation,
        kafka_bootstrap=log,
        database=blank_database + FEW_PARTS,
        shards=shards,
        kafka_topic_prefix=prefix(),
        backfill_concurrency=6,
    )

    def synced(number: int) -> int:
        return int(ask(urls[number], SYNCED))

    def newest(number: int) -> str:
        return str(ask(urls[number], "select max(rev) from sluice.repo"))

    one.up()
    one.started()
    wait_for(lambda: one.alive() and min(map(synced, range(3))) > 5, 120, one.last_lines)
    assert one.phases() == {}, "the main database has no repos"
    before = newest(1)
    servers[1].kill()
    simulation.set_faults(clear=True)
    wait_for(lambda: one.alive() and one.status()["shards_down"], 120, one.last_lines)
    index = wait_for(lambda: one.alive() and one.pid("index"), 120, one.last_lines)
    os.kill(index, signal.SIGKILL)  # its successor begins without the third server
    wait_for(lambda: one.alive() and one.pid("index") not in (0, index), 120, one.last_lines)
    seen = [newest(number) for number in range(3)]

    def others_go_on() -> bool:
        """Fetches are done, but for those of live accounts, and live commits arrive."""
        assert one.alive()
        left = "select count(*) from sluice.repo where phase in ('pending', 'backfill')"
        return all(newest(at) > seen[at] and ask(urls[at], left) < 10 for at in (0, 2))

    wait_for(others_go_on, 120, lambda: f"{seen}; {one.last_lines()}")
    page = one.status()
    assert page["shards_down"] == ["3-5"]
    assert any("shard 3-5" in problem["what"] for problem in page["attention"])
    checked = one.cli("shards", "check", "--json")
    assert checked.returncode == 1
    assert '"partitions": "3-5", "repos": null' in checked.stdout

    servers[1].start()
    wait_for(lambda: one.alive() and newest(1) > before, 120, one.last_lines)
    one.quiesce()
    wait_for(
        lambda: not difference(urls, simulation), 120, lambda: f"{difference(urls, simulation)} {one.last_lines()}"
    )
    assert one.status()["repos"]["sync"] == sum(map(synced, range(3)))
    audited = one.cli("audit", "--all", "--json", seconds=120)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    attached_views_show_all(one, urls)
    assert one.interrupt() == 0
    one_database_holds_the_same(one, urls, database + FEW_PARTS)


def attached_views_show_all(one: Mirror, urls: list[str]) -> None:
    """`sluice shards attach`, twice: every record of each shard is in the main database's sluice.record."""
    for _ in range(2):
        attached = one.cli("shards", "attach")
        assert attached.returncode == 0, attached.stderr
    columns = "did, uri, cid, rev, json::text, indexed_at"
    everything = sorted(row for url in urls for row in rows(url, f"select {columns} from sluice.record"))
    assert sorted(one.query(f"select {columns} from sluice.record")) == everything
    did = everything[0][0]
    assert one.query("select count(*) from sluice.record where did = %s", did)[0][0] == sum(
        row[0] == did for row in everything
    )
    plan = "\n".join(
        row[0] for row in one.query("explain (verbose) select cid from sluice.record where did = 'did:plc:x'")
    )
    assert plan.count("Remote SQL") == 3
    assert plan.count("did = 'did:plc:x'") >= 3, "each shard looks for itself"
    assert one.query("select count(*) from sluice_shards.repo")[0][0] == sum(
        ask(url, "select count(*) from sluice.repo") for url in urls
    )


def one_database_holds_the_same(one: Mirror, urls: list[str], database: str) -> None:
    """The log, replayed into one database, gives the rows of the three."""
    one.settings = {name: value for name, value in one.settings.items() if name != "shards"}
    rebuilt = one.cli("replay", "--all", "--into", database, "--json", seconds=120)
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    repos = "select did, phase, active, status, rev, data, commit, handle from sluice.repo where phase = 'sync'"
    assert_same_rows(database, urls, repos)
    assert_same_rows(database, urls, RECORDS)


def assert_same_rows(database: str, urls: list[str], statement: str) -> None:
    """The rows of one database are those of the shards together; a failure shows only what differs, and the rows of the repos."""
    one, shards = set(rows(database, statement)), {row for url in urls for row in rows(url, statement)}
    differ = {row[0].removeprefix("at://").partition("/")[0] for row in one ^ shards}
    of_repo = "select did, phase, reason, status, attempt, rev, seen_rev, account_time, account_seq, phase_since::text from sluice.repo"
    found = [row for url in (database, *urls) for row in rows(url, of_repo) if row[0] in differ]
    assert not one ^ shards, f"only in one database: {one - shards}; only in the shards: {shards - one}; repos: {found}"


def ask(url: str, statement: str) -> Any:
    return rows(url, statement)[0][0]


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    try:
        with psycopg.connect(url, autocommit=True) as db:
            return db.execute(statement.encode()).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.OperationalError):
        return [(0,)]
