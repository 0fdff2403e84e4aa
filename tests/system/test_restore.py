"""Backup and restore as docs/deploying.md has it: a dump of the running database, and the log from where the dump stands."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_database import fresh_database
from fix_mirror import Mirror, prefix, wait_for
from test_replays import log_ends, stored
from test_two_workers import stop

from simulator.embedded_database import find_binaries

pytestmark = pytest.mark.acceptance


def test_a_dump_and_the_log_are_the_mirror(
    simulator: Any, log: str, postgres: str, database: str, mirror: Any, tmp_path: Path
) -> None:
    """G2: dumped in the middle of a backfill, restored elsewhere, the index first and then the rest: the network's state."""
    simulation = simulator(seed=71, repos=400, records_per_repo=15, labels=60, churn=0.03, writer_rate=40)
    simulation.set_faults(pds_slow={"p": 0.3, "seconds": 1})  # so that it is dumped in the middle, however late we look
    name = prefix()
    one: Mirror = mirror(simulation, bootstrap=log, database=database, topic_prefix=name, backfill_concurrency=3)
    for kind in ("control", "index", "backfill", "firehose", "labels", "list-repos"):
        one.run(kind)
    wait_for(lambda: one.phases().get("sync", 0) > 50, 90, one.last_lines)
    dump = tmp_path / "sluice.dump"
    tool("pg_dump", "--format=custom", f"--file={dump}", database)
    in_dump = one.phases()
    simulation.set_faults(clear=True)
    wait_for(lambda: one.phases().get("sync", 0) > 300, 90, one.last_lines)
    stop(one)
    after = one.query("select count(*), sum(attempt) from sluice.repo where phase = 'sync'")[0]
    ends = log_ends(log, name)

    with fresh_database(postgres) as restored:
        tool("pg_restore", "--no-owner", "--exit-on-error", f"--dbname={restored}", str(dump))
        with psycopg.connect(restored) as db:
            begun = dict(db.execute("select phase, count(*) from sluice.repo group by phase").fetchall())
        behind = sum(ends.values()) - sum(stored(restored).values())
        print(f"dumped at {in_dump}, restored {begun}, {behind} messages to replay; before {after}")
        assert behind > 200, "the dump lacks nothing"
        assert begun.get("sync", 0) < after[0]
        two: Mirror = mirror(simulation, bootstrap=log, database=restored, topic_prefix=name)
        index = two.run("index")
        wait_for(lambda: index.running and stored(restored) == ends, 90, two.last_lines)
        assert two.phases().get("sync", 0) >= after[0] - 5, "the log alone brought back what it held"
        for kind in ("control", "backfill", "firehose", "labels", "list-repos"):
            two.run(kind)
        wait_for(lambda: two.phases().get("sync", 0) > 350, 90, two.last_lines)
        two.quiesce()
        two.await_truth(90)
        audit = two.cli("audit", "--all", "--json")
        assert audit.returncode == 0, audit.stdout[-2000:] + audit.stderr[-2000:]
        stop(two)


def tool(name: str, *arguments: str) -> None:
    """One of PostgreSQL's programs, of the server's own version."""
    done = subprocess.run(
        [find_binaries() / name, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
