"""The list_repos flow as a process, on the simulated relays and PDSes, the real broker and the real database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from flows.list_repos.gap_recovery import recover_now
from schemas.settings import Settings
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


def test_a_failing_cursor_is_skipped_recorded_and_filled_later(simulator: Start, flow_bed: FlowBed) -> None:
    """B2, N6, G5: at a relay (numbers) and at a PDS (opaque)."""
    network = simulator(repos=2300, records_per_repo=1, pdses=1)
    (relay,), (pds,) = network.relays, network.pdses
    network.set_faults(relay_list_500={"from": 250, "to": 260}, pds_list_500={"from": 1000, "to": 1001})
    flow = flow_bed.start("list_repos", relays=[relay], crawl_hosts=True, list_page_size=100, **QUICK)
    wait_until(lambda: completed(flow_bed, relay) and completed(flow_bed, pds))
    assert network.fired("relay_list_500") >= 5
    assert network.fired("pds_list_500") >= 5
    ranges = flow_bed.rows("select upstream, from_cursor, to_cursor, reason, filled_at from sluice.skipped_range")
    assert {row[0] for row in ranges} == {relay, pds}
    at_relay = [row for row in ranges if row[0] == relay]
    assert [row[1:3] for row in at_relay] == [("200", "1200")]
    assert all("500" in row[3] and row[4] is None for row in ranges)
    network.set_faults(clear=True)
    flow_bed.db.execute("update sluice.skipped_range set next_retry_at = now()")
    wait_until(lambda: not flow_bed.rows("select 1 from sluice.skipped_range where filled_at is null"))
    assert listed(flow_bed) == set(network.state())
    assert max(tasks(flow_bed).values()) == 1
    assert flow.terminate() == 0


def test_a_pds_whose_list_is_too_long_is_read_to_the_bound(simulator: Start, flow_bed: FlowBed) -> None:
    """B8: the bound holds across restarts, and over both of two PDSes."""
    network = simulator(repos=300, records_per_repo=1, pdses=2)
    (relay,), hosts = network.relays, network.pdses
    network.set_faults(relay_list_500={"from": 0, "to": 10**9})  # what there is, only the PDSes say
    settings = QUICK | {"list_page_size": 20, "list_host_repos": 60}

    def found() -> dict[str, int]:
        return dict(flow_bed.rows("select host, count(*) from sluice.repo group by host"))

    for _ in range(2):
        flow = flow_bed.start("list_repos", relays=[relay], crawl_hosts=True, **settings)
        refused = partial(flow.metric, "sluice_upstream_errors_total", flow="list_repos", reason="too_many_repos")
        wait_until(lambda refused=refused: refused() >= 6)
        wait_until(lambda: found().keys() == set(hosts))
        assert flow.terminate() == 0
        assert max(found().values()) <= 60


def test_a_failing_first_page_does_not_loop(simulator: Start, flow_bed: FlowBed) -> None:
    """B2: the relay's first page is skipped; a PDS's is narrowed, then retried with growing waits, and delays no other listing."""
    network = simulator(repos=1500, records_per_repo=1, pdses=1)
    (relay,), (pds,) = network.relays, network.pdses
    network.set_faults(relay_list_500={"from": 1, "to": 5}, pds_list_500={"from": 1, "to": 5})
    settings = QUICK | {"list_hosts_recheck_seconds": 3600, "list_recheck_seconds": 3600}
    flow = flow_bed.start("list_repos", relays=[relay], crawl_hosts=True, **settings)
    wait_until(lambda: completed(flow_bed, relay))
    wait_until(lambda: network.fired("pds_list_500") >= 10)
    rows = flow_bed.rows("select from_cursor, to_cursor from sluice.skipped_range where upstream = %s", relay)
    assert rows == [("", "1000")]
    requests = network.fired("pds_list_500")
    wait_until(lambda: flow.health()["state"] == "idle")
    assert network.fired("pds_list_500") <= requests + 10  # narrowed to one entry, then it waits
    assert job(flow_bed, pds) == {}
    assert len(listed(flow_bed)) == 500
    assert flow.terminate() == 0


def test_a_recheck_finds_new_accounts_and_keeps_the_job_completed(simulator: Start, flow_bed: FlowBed) -> None:
    """B1, R4: a job's cutoff and end stay what they were; accounts that come later are found."""
    network = simulator(repos=50, records_per_repo=1)
    (relay,) = network.relays
    flow = flow_bed.start("list_repos", relays=[relay], **QUICK)
    wait_until(lambda: completed(flow_bed, relay))
    before = job(flow_bed, relay)
    network.op("new_account")
    wait_until(lambda: len(listed(flow_bed)) == 51)
    wait_until(lambda: sum(tasks(flow_bed).values()) == sum(repo.active for repo in network.state().values()))
    wait_until(lambda: job(flow_bed, relay)["listed"] > before["listed"])
    after = job(flow_bed, relay)
    assert [after[key] for key in ("status", "cutoff", "completed_at")] == [
        before[key] for key in ("status", "cutoff", "completed_at")
    ]
    assert after["queued"] == before["queued"]
    assert flow_bed.rows("select count(*) from sluice.repo where job is null") == [(1,)]
    assert flow.terminate() == 0


def test_a_gap_of_the_stream_is_resolved_by_a_new_listing(simulator: Start, flow_bed: FlowBed) -> None:
    network = simulator(repos=60, records_per_repo=1)
    (relay,) = network.relays
    settings = QUICK | {"list_recheck_seconds": 3600, "gap_relist_seconds": 0.5}
    flow = flow_bed.start("list_repos", relays=[relay], list_page_size=20, **settings)
    wait_until(lambda: completed(flow_bed, relay))
    listed_once = job(flow_bed, relay)["listed"]
    # at once: the flow may look between two statements, and would list once more for the second one
    both = (
        "insert into sluice.stream_gap (upstream, reason) values (%s, 'sequence_gap'), ('firehose_live', 'log_start')"
    )
    flow_bed.db.execute(both.encode(), (relay,))
    wait_until(lambda: not flow_bed.rows("select 1 from sluice.stream_gap where answered_at is null"))
    assert job(flow_bed, relay)["listed"] >= listed_once + 60
    detail = flow_bed.rows("select detail from sluice.cursor where flow = 'list_repos'")[0][0]
    assert (detail["pass"], detail["done"]) == (2, True)
    assert flow.terminate() == 0


def test_throttled_and_absent_relays_move_no_cursor(simulator: Start, flow_bed: FlowBed) -> None:
    """R3, B11"""
    network = simulator(repos=30, records_per_repo=1)
    (relay,) = network.relays
    network.set_faults(relay_list_429={"times": 3})
    closed = "http://127.0.0.1:9"
    flow = flow_bed.start("list_repos", relays=[relay, closed], **QUICK)
    wait_until(lambda: completed(flow_bed, relay))
    assert network.fired("relay_list_429") == 3
    page = wait_until(lambda: (page := flow.health())["state"] == "failing" and page)
    assert closed in page["why"]
    assert flow_bed.rows("select * from sluice.skipped_range") == []
    assert listed(flow_bed) == set(network.state())
    assert flow.terminate() == 0


def test_back_pressure_pauses_the_listing_and_resumes_without_loss(simulator: Start, flow_bed: FlowBed) -> None:
    """B7: no worker takes the tasks, so the listing waits; when they are done it continues."""
    network = simulator(repos=1000, records_per_repo=1, faults={"list_slow": {"seconds": 0.05}})
    (relay,) = network.relays
    network.op("new_account")
    slow = {"list_page_size": 1, "kafka_high_water_messages": 100}
    flow = flow_bed.start("list_repos", relays=[relay], **QUICK, **slow)
    page = wait_until(lambda: (page := flow.health())["state"] == "paused" and page)
    assert "behind on" in page["why"]
    assert len(listed(flow_bed)) < 1001  # page by page the listing takes longer than the looks at the lag are apart
    network.set_faults(clear=True)

    def settled() -> bool:
        flow_bed.settle("repo_backfill", "backfill")
        return completed(flow_bed, relay)

    wait_until(settled, 120)
    assert listed(flow_bed) == set(network.state())
    assert flow.terminate() == 0


def test_a_range_that_keeps_failing_is_filled_by_the_pdses(simulator: Start, flow_bed: FlowBed) -> None:
    """N6, B2: the relay never answers for some accounts; every PDS is listed instead, though the settings do not ask for it."""
    network = simulator(repos=1500, records_per_repo=1, pdses=3)
    (relay,) = network.relays
    network.set_faults(relay_list_500={"from": 250, "to": 260})
    flow = flow_bed.start("list_repos", relays=[relay], list_page_size=100, **QUICK)
    wait_until(lambda: completed(flow_bed, relay))
    wait_until(lambda: flow_bed.rows("select 1 from sluice.skipped_range where filled_at is null"))
    active = {did for did, repo in network.state().items() if repo.active}
    assert active - listed(flow_bed)
    assert flow_bed.rows("select count(*) from sluice.host") == [(0,)]
    assert recover_now(Settings(**flow_bed.base), None)
    wait_until(lambda: not flow_bed.rows("select 1 from sluice.skipped_range where filled_at is null"))
    assert flow_bed.rows("select filled_by from sluice.skipped_range where upstream = %s", relay) == [("pdses",)]
    assert network.fired("relay_list_500") > 5
    assert active <= listed(flow_bed)  # of inactive accounts a PDS is not believed, and there is nothing to fetch
    assert flow.terminate() == 0
    assert max(tasks(flow_bed).values()) == 1
