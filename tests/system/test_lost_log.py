"""The log is gone with all that was in it: docs/deploying.md's steps over a new, empty one, and the tables are the network's."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from local.embedded.embedded_log import EmbeddedLog
from tests.support.whole_mirror import Mirror, prefix, wait_for
from tests.system.test_two_workers import stop

pytestmark = pytest.mark.acceptance


def test_a_new_log_continues_at_the_positions_of_the_tables(
    simulator: Any, log: str, private_log: EmbeddedLog, database: str, mirror: Any
) -> None:
    """G1: lost with outcomes, live events and labels that nobody had indexed; offsets begin at 0, cursors go on."""
    slow = {"pds_slow": {"seconds": 0.4}}  # so that repos are left to fetch, however fast the machine
    simulation = simulator(seed=83, repos=250, records_per_repo=12, labels=80, churn=0.02, faults=slow, writer_rate=40)
    name = prefix()
    one: Mirror = mirror(
        simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=name, backfill_concurrency=6
    )
    for kind in ("control", "backfill", "firehose", "labels", "list-repos"):
        one.run(kind)
    index = one.run("index")
    wait_for(lambda: one.phases().get("sync", 0) > 20, 120, one.last_lines)
    index.kill()
    produced = "select count(*) from sluice.repo where phase = 'backfill' and produced_offset is not null"
    wait_for(lambda: one.query(produced)[0][0] > 80, 120, one.last_lines)
    stop(one)
    before = one.phases()
    print(f"lost while {before}, {one.query(produced)[0][0]} outcomes in the lost log")

    simulation.set_faults(clear=True)
    two: Mirror = mirror(simulation, kafka_bootstrap=private_log.bootstrap, database=database, kafka_topic_prefix=name)
    for labeler in simulation.labelers:
        reset = two.cli("cursors", "reset", "labels", labeler, "--yes")
        assert reset.returncode == 0, reset.stderr
    two.run("control")
    two.run("index")
    with psycopg.connect(database, autocommit=True) as db:
        noticed = "select count(distinct upstream) from sluice.stream_gap where reason = 'the log is another one'"
        wait_for(lambda: db.execute(noticed).fetchone() == (3 * 8,), 120, two.last_lines)
    for kind in ("backfill", "firehose", "labels", "list-repos"):
        two.run(kind)
    wait_for(lambda: two.phases().get("sync", 0) > 200, 120, two.last_lines)
    two.quiesce()
    two.await_truth(120)
    unanswered = (
        "select count(*) from sluice.stream_gap where answered_at is null"  # by a listing, which takes its time
    )
    wait_for(lambda: two.query(unanswered) == [(0,)], 120, two.last_lines)
    audit = two.cli("audit", "--all", "--json")
    assert audit.returncode == 0, audit.stdout[-2000:] + audit.stderr[-2000:]
    stop(two)
