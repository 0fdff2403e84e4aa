"""When a listing pauses, ends and begins again."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from flows.list_repos.gap_recovery import GapRecovery
from schemas.settings import Settings
from steps.listing.paginator import Listing
from tests.flows.list_repos.listing_here import Here

QUICK: dict[str, Any] = {"list_retry_seconds": 0.02, "list_recheck_seconds": 1.0, "list_hosts_recheck_seconds": 1.0}


def test_a_recheck_finds_new_accounts_and_keeps_the_job_completed(here: Here) -> None:
    """B1, R4: a job's cutoff and end stay what they were; accounts that come later are found."""
    run = here({"repos": 50, "records_per_repo": 1})
    network = run.simulation
    (relay,) = network.relays
    flow = run.start(relays=[relay], **QUICK)
    run.until(lambda: run.completed(relay))
    before = run.job(relay)
    network.op("new_account")
    run.until(lambda: len(run.listed()) == 51)
    run.until(lambda: sum(run.tasks().values()) == sum(repo.active for repo in network.state().values()))
    run.until(lambda: run.job(relay)["listed"] > before["listed"])
    after = run.job(relay)
    assert [after[key] for key in ("status", "cutoff", "completed_at")] == [
        before[key] for key in ("status", "cutoff", "completed_at")
    ]
    assert after["queued"] == before["queued"]
    assert run.rows("select count(*) from sluice.repo where job is null") == [(1,)]
    assert flow.terminate() == 0


def test_a_gap_of_the_stream_is_resolved_by_a_new_listing(here: Here) -> None:
    run = here({"repos": 60, "records_per_repo": 1})
    network = run.simulation
    (relay,) = network.relays
    settings = QUICK | {"list_recheck_seconds": 3600, "gap_relist_seconds": 0.5}
    flow = run.start(relays=[relay], list_page_size=20, **settings)
    run.until(lambda: run.completed(relay))
    listed_once = run.job(relay)["listed"]
    run.own.pass_time(1.0)
    # at once: the flow may look between two statements, and would list once more for the second one
    both = (
        "insert into sluice.stream_gap (upstream, reason) values (%s, 'sequence_gap'), ('firehose_live', 'log_start')"
    )
    run.db.execute(both.encode(), (relay,))
    run.until(lambda: not run.rows("select 1 from sluice.stream_gap where answered_at is null"))
    assert run.job(relay)["listed"] >= listed_once + 60
    detail = run.rows("select detail from sluice.cursor where flow = 'list_repos'")[0][0]
    assert (detail["pass"], detail["done"]) == (2, True)
    assert flow.terminate() == 0


@pytest.mark.parametrize(
    ("state", "complete"),
    [(Listing(9, done=True), True), (Listing(9, done=True, cut="the cursors repeat"), False), (Listing(9), False)],
)
def test_only_a_complete_listing_resolves_gaps(state: Listing, complete: bool) -> None:
    """B2"""
    relay, database = "https://relay.example", Mock()
    gaps = GapRecovery(Settings(relays=[relay]), database, lambda: 0.0)
    gaps.resolve(database, relay, state)
    assert database.execute.called is complete


def test_throttled_and_absent_relays_move_no_cursor(here: Here) -> None:
    """R3, B11"""
    run = here({"repos": 30, "records_per_repo": 1})
    network = run.simulation
    (relay,) = network.relays
    network.set_faults(relay_list_429={"times": 3})
    closed = "http://127.0.0.1:9"
    flow = run.start(relays=[relay, closed], **QUICK)
    run.until(lambda: run.completed(relay))
    assert network.fired("relay_list_429") == 3
    page = run.until(lambda: (page := flow.health())["state"] == "failing" and page)
    assert closed in page["why"]
    assert run.rows("select * from sluice.skipped_range") == []
    assert run.listed() == set(network.state())
    assert flow.terminate() == 0


def test_back_pressure_pauses_the_listing_and_resumes_without_loss(here: Here) -> None:
    """B7: no worker takes the tasks, so the listing waits; when they are done it continues."""
    run = here({"repos": 300, "records_per_repo": 1, "faults": {"list_slow": {"seconds": 0.05}}})
    network = run.simulation
    (relay,) = network.relays
    network.op("new_account")
    slow = {"list_page_size": 1, "kafka_high_water_messages": 100}
    flow = run.start(relays=[relay], **QUICK, **slow)
    page = run.until(lambda: (page := flow.health())["state"] == "paused" and page)
    assert "behind on" in page["why"]
    run.own.pass_time(60.0)
    stopped_at = len(run.listed())
    run.own.pass_time(60.0)
    assert len(run.listed()) == stopped_at < 301
    network.set_faults(clear=True)

    def settled() -> bool:
        run.fetched |= run.log.ends("repo_backfill")
        return run.completed(relay)

    run.until(settled, 120)
    assert run.listed() == set(network.state())
    assert flow.terminate() == 0


def test_a_late_page_does_not_take_down_what_has_come_back_since_its_request(here: Here) -> None:
    """G5: the relay's list is older than the #account that lifted the takedown. A page requested later counts."""
    run = here({"repos": 20, "records_per_repo": 1})
    network = run.simulation
    (relay,), did = network.relays, sorted(network.state())[0]
    phase = "select phase from sluice.repo where did = %s"
    flow = run.start(relays=[relay], list_relist_seconds=5.0, **QUICK)
    run.until(lambda: run.completed(relay))
    network.op("takedown", did=did)
    network.set_faults(list_slow={"seconds": 4.0})
    slow = network.fired("list_slow")
    run.until(lambda: network.fired("list_slow") > slow)
    # the takedown and its end came meanwhile, and a worker has the repo
    run.db.execute("update sluice.repo set phase = 'backfill', phase_since = now(), attempt = 1 where did = %s", (did,))
    before = network.fired("list_slow")
    run.until(lambda: network.fired("list_slow") > before, 120)
    assert run.rows(phase, did) == [("backfill",)]
    run.until(lambda: run.rows(phase, did) == [("unavailable",)], 120)
    assert flow.terminate() == 0
