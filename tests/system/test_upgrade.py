"""A rolling update across migrations, with processes of two releases side by side: neither hears of it (docs/deploying.md)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.whole_mirror import ROOT, Mirror, SingleProcess, prefix, wait_for
from tests.system.test_two_workers import stop

pytestmark = pytest.mark.acceptance

GRACE_SECONDS = 90.0  # in deploy/k8s it is 150
PACKAGES = ("flows", "steps", "connectors", "schemas", "control", "simulator")
# what a release may add while the one before still runs: columns with and without a default, tables, constraints, indexes
EXPAND = """
alter table sluice.record_row add column language text;
alter table sluice.record_row add column seen_at timestamptz not null default now();
alter table sluice.repo add column tier smallint not null default 0;
alter table sluice.label add column note text;
alter table sluice.cursor add column region text;
alter table sluice.host add column tier smallint not null default 0;
create table sluice.of_the_next_release (did text primary key, seen_at timestamptz not null default now());
alter table sluice.repo add constraint tier_is_small check (tier between 0 and 9) not valid;
"""
# (of a partitioned table each part's index is built for itself)
CONCURRENT = """-- no-transaction
create index concurrently record_language on sluice.record_row_00 (language) where language is not null;
"""
# and what a later one may take away, once nothing that runs uses it
CONTRACT = """
alter table sluice.record_row drop column language;
alter table sluice.repo drop constraint tier_is_small, drop column tier;
drop table sluice.of_the_next_release;
"""


def release(folder: Path, **migrations: str) -> Path:
    """Our code as another release: with these migrations more."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, sql in migrations.items():
        (folder / "schemas" / "sql" / "migrations" / f"{name}.sql").write_text(sql)
    return folder


def test_two_releases_side_by_side(simulator: Any, log: str, database: str, mirror: Any, tmp_path: Path) -> None:
    """U1, R1: expand under running processes, old beside new, an old one started on the newer database, then contract."""
    newer = {"m9000_wider": EXPAND, "m9001_index": CONCURRENT}
    next_one = release(tmp_path / "next", **newer)
    after_it = release(tmp_path / "after", **newer, m9002_narrower=CONTRACT)
    simulation = simulator(seed=61, repos=500, records_per_repo=15, labels=60, churn=0.02, writer_rate=30)
    simulation.set_faults(pds_slow={"p": 0.6, "seconds": 1})  # so that the backfill lasts
    calm = {
        "listed_rev_grace_seconds": 60.0,
        "list_relist_seconds": 60.0,
    }  # an index that is slow here is no lost event
    one: Mirror = mirror(
        simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix(), backfill_concurrency=2, **calm
    )
    old = {kind: one.run(kind) for kind in ("control", "index", "backfill", "firehose", "labels", "list-repos")}
    wait_for(lambda: works(old["index"]), 120, one.last_lines)
    before = one.query("select count(*) from sluice.migration")[0][0]

    new = {kind: one.run(kind, code=next_one) for kind in ("index", "backfill", "control")}
    wait_for(lambda: applied(one) == before + 2, 120, one.last_lines)
    assert one.phases().get("pending", 0) + one.phases().get("backfill", 0) > 50, "the backfill was over before"
    share_the_work(one, old["index"], new["index"])
    simulation.set_faults(clear=True)

    # back again: the old release starts on the newer database, and the rest of the new one goes on
    for kind in ("index", "backfill"):
        assert old[kind].terminate(GRACE_SECONDS) == 0
    again = one.run("index")
    share_the_work(one, again, new["index"])
    for kind, process in old.items():
        if process.running and kind != "index":
            assert process.terminate(GRACE_SECONDS) == 0
    assert again.terminate(GRACE_SECONDS) == 0

    last = {kind: one.run(kind, code=after_it) for kind in ("control", "firehose", "labels", "list-repos", "index")}
    wait_for(lambda: applied(one) == before + 3, 120, one.last_lines)
    share_the_work(one, new["index"], last["index"])
    one.quiesce()
    one.await_truth(120)
    stop(one)
    said = "".join(process.log_file.read_text() for process in one.single)
    assert "Traceback" not in said
    assert "transaction rolled back" not in said


def works(process: SingleProcess) -> bool:
    """Has it settled messages?"""
    assert process.running, process.log_file.read_text()[-3000:]
    return process.metric("sluice_indexed_events_total") > 20


def applied(one: Mirror) -> int:
    """Migrations that the database has."""
    return int(one.query("select count(*) from sluice.migration")[0][0])


def share_the_work(one: Mirror, first: SingleProcess, second: SingleProcess) -> None:
    """Both settle messages from now on."""
    begin = [process.metric("sluice_indexed_events_total") for process in (first, second)]

    def moved() -> bool:
        assert all(process.running for process in one.single if process in (first, second)), one.last_lines()
        now = [process.metric("sluice_indexed_events_total") for process in (first, second)]
        return all(after > before for before, after in zip(begin, now, strict=True))

    wait_for(moved, 120, one.last_lines)
