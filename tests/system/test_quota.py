"""The incident of R on the whole system: quotas of the relay and of a PDS in the middle of a job, and everything restarted."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance

REPOS, PAGE, RESET_SECONDS = 160, 20, 15  # the stop has to come before the reset
JOB = "select status, checkpoint->>'cursor', listed, next_retry_at, duplicates, now() from sluice.backfill_job where id = 1"


def test_a_job_outlives_its_quota_and_a_restart_of_everything(
    simulator: Any, log: str, database: str, mirror: Any
) -> None:
    """R2, R3, R4, G1: it goes on by itself at its checkpoint when the reset has come; the tables are the network's state."""
    simulation = simulator(seed=61, repos=REPOS, records_per_repo=12, labelers=0, pdses=3)
    simulation.set_faults(
        relay_list_500={"from": REPOS // 2 + 1},  # the listing waits for the PDS's 429
        pds_429={"host": 1, "times": 1, "retry_after": 2 * RESET_SECONDS},  # over the restart
    )
    one: Mirror = mirror(
        simulation,
        kafka_bootstrap=log,
        database=database,
        kafka_topic_prefix=prefix(),
        list_page_size=PAGE,
        list_relist_seconds=600.0,
        list_recheck_seconds=600.0,
        listed_rev_grace_seconds=600.0,
        skip_after_failures=1_000_000,
    )
    simulation.writer(10)
    one.up()
    wait_for(lambda: one.alive() and simulation.fired("relay_list_500") and paused_host(one), 120, one.last_lines)
    quota = {"from": REPOS // 2, "times": 1, "retry_after": RESET_SECONDS}
    simulation.set_faults(relay_list_500=None, relay_list_429=quota)
    wait_for(lambda: job(one)[0] == "paused_quota_limit", 120, lambda: str(job(one)))
    assert one.interrupt() == 0
    status, cursor, listed, reset, _, _ = job(one)
    assert (status, bool(cursor)) == ("paused_quota_limit", True), "what stands is the checkpoint, and why"
    assert 0 < listed < REPOS
    simulation.op("create", did=next(did for did, repo in simulation.state().items() if repo.active))

    one.up()
    wait_for(lambda: one.alive() and job(one)[0] in ("running", "completed"), 120, lambda: str(job(one)))
    assert job(one)[5] >= reset, "not before the reset"
    assert simulation.fired("relay_list_429") == 1
    wait_for(lambda: job(one)[0] == "completed", 120, lambda: str(job(one)))
    one.quiesce()
    one.await_truth(120)
    _, _, listed, _, duplicates, _ = job(one)
    assert listed - duplicates <= REPOS <= listed, "all were listed; a page that was read again brought nothing new"
    pds = simulation.faults()["hosts"][simulation.pdses[1]]
    assert (pds["early"], simulation.fired("pds_429")) == (0, 1), "nor was the PDS asked again before its own"


def job(one: Mirror) -> tuple[Any, ...]:
    """Status, cursor, repos listed, reset, how many of them were known, and the database's now."""
    return (one.query(JOB) or [("", None, 0, None, 0, None)])[0]


def paused_host(one: Mirror) -> datetime | None:
    """Until when the PDS wants no request."""
    return one.query("select max(paused_until) from sluice.host")[0][0]
