"""The list_repos flow as a process, on the simulated relays and PDSes, the real broker and the real database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import wait_until
from tests.support.simulation import Simulation

Start = Callable[..., Simulation]
QUICK: dict[str, Any] = {"list_retry_seconds": 0.02, "list_recheck_seconds": 1.0, "list_hosts_recheck_seconds": 1.0}


def listed(bed: FlowBed) -> set[str]:
    return {row[0] for row in bed.rows("select did from sluice.repo")}


def tasks(bed: FlowBed) -> Counter[str]:
    return Counter(key for key, _ in bed.messages("repo_backfill"))


def job(bed: FlowBed, upstream: str) -> dict[str, Any]:
    names = ("status", "listed", "queued", "duplicates", "cutoff", "completed_at", "checkpoint")
    rows = bed.rows(f"select {', '.join(names)} from sluice.backfill_job where name = %s", f"list {upstream}")
    return dict(zip(names, rows[0], strict=True)) if rows else {}


def completed(bed: FlowBed, upstream: str) -> bool:
    """Its listing is at its end. (Whether its repos are done is decided by control, which does not run here.)"""
    return job(bed, upstream).get("checkpoint", {}).get("done") is True


def test_every_repo_becomes_a_row_and_every_active_one_a_task(simulator: Start, flow_bed: FlowBed) -> None:
    """B1, P4, R4: a relay and all its PDSes; what is found twice is queued once, and counted."""
    network = simulator(repos=250, records_per_repo=2, pdses=3)
    (relay,) = network.relays
    flow = flow_bed.start("list_repos", relays=[relay], crawl_hosts=True, list_page_size=40, **QUICK)
    wait_until(lambda: all(completed(flow_bed, url) for url in [relay, *network.pdses]))
    truth = network.state()
    assert listed(flow_bed) == set(truth)
    wait_until(lambda: sum(job(flow_bed, url)["queued"] for url in [relay, *network.pdses]) > 0)
    assert flow.terminate() == 0
    assert tasks(flow_bed) == Counter({did: 1 for did, repo in truth.items() if repo.active})
    phases = dict(flow_bed.rows("select phase, count(*) from sluice.repo group by phase"))
    assert phases["unavailable"] == sum(not repo.active for repo in truth.values())
    jobs = [job(flow_bed, url) for url in [relay, *network.pdses]]
    assert sum(one["queued"] for one in jobs) == phases["pending"] + phases["unavailable"], "inactive ones are new, too"
    assert sum(one["duplicates"] for one in jobs) > 0
    assert {row[0] for row in flow_bed.rows("select host from sluice.host")} == set(network.pdses)
    assert all(row[0] for row in flow_bed.rows("select listed_at is not null from sluice.host"))


def test_kill_9_at_any_moment_queues_every_repo_and_none_twice(simulator: Start, flow_bed: FlowBed) -> None:
    """G1, G2, G8, R2: each start finds the job and goes on from its checkpoint.

    A page that is read again is counted once. A repo whose row was committed by a killed process and whose message was not
    is queued by control, so here only rows must be complete, and no repo may have two tasks.
    """
    # 120 pages at no more than five a second: each kill comes long before the end
    network = simulator(repos=600, records_per_repo=1, faults={"list_slow": {"seconds": 0.2}})
    (relay,) = network.relays
    settings: dict[str, Any] = {"relays": [relay], "list_page_size": 5, **QUICK}
    positions = []
    for _ in range(4):
        before = len(listed(flow_bed))
        flow = flow_bed.start("list_repos", **settings)
        wait_until(lambda before=before: len(listed(flow_bed)) > before + 40)
        flow.kill()
        rows = flow_bed.rows(
            "select position, listed from sluice.cursor, sluice.backfill_job where flow = 'list_repos'"
        )
        positions.append(int(rows[0][0] or 0) if rows else 0)
        assert not rows or rows[0][1] == positions[-1], "the counts are those of the pages that the cursor has passed"
        if positions[-1]:  # every account up to the cursor has its row
            assert flow_bed.rows("select count(*) from sluice.repo")[0][0] >= positions[-1]
    assert positions == sorted(positions)
    assert len(listed(flow_bed)) < 600, "it was killed in the middle"
    network.set_faults(clear=True)
    flow = flow_bed.start("list_repos", **settings)
    wait_until(lambda: completed(flow_bed, relay))
    assert flow.terminate() == 0
    truth = network.state()
    assert listed(flow_bed) == set(truth)
    found = tasks(flow_bed)
    assert max(found.values()) == 1
    assert set(found) <= {did for did, repo in truth.items() if repo.active}
    assert len(flow_bed.rows("select id from sluice.backfill_job")) == 1
