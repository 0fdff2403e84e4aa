"""Pages that keep failing: skipped, recorded, filled later, and no loop; lists that are too long."""

from __future__ import annotations

from functools import partial
from typing import Any

from flows.list_repos.gap_recovery import recover_now
from tests.flows.list_repos.listing_here import Here

QUICK: dict[str, Any] = {"list_retry_seconds": 0.02, "list_recheck_seconds": 1.0, "list_hosts_recheck_seconds": 1.0}


def test_a_failing_cursor_is_skipped_recorded_and_filled_later(here: Here) -> None:
    """B2, N6, G5: at a relay (numbers) and at a PDS (opaque)."""
    run = here({"repos": 2300, "records_per_repo": 1, "pdses": 1})
    network = run.simulation
    (relay,), (pds,) = network.relays, network.pdses
    network.set_faults(relay_list_500={"from": 250, "to": 260}, pds_list_500={"from": 1000, "to": 1001})
    flow = run.start(relays=[relay], crawl_hosts=True, list_page_size=100, **QUICK)
    run.until(lambda: run.completed(relay) and run.completed(pds))
    assert network.fired("relay_list_500") >= 5
    assert network.fired("pds_list_500") >= 5
    ranges = run.rows("select upstream, from_cursor, to_cursor, reason, filled_at from sluice.skipped_range")
    assert {row[0] for row in ranges} == {relay, pds}
    at_relay = [row for row in ranges if row[0] == relay]
    assert [row[1:3] for row in at_relay] == [("200", "1200")]
    assert all("500" in row[3] and row[4] is None for row in ranges)
    network.set_faults(clear=True)
    run.db.execute("update sluice.skipped_range set next_retry_at = now()")
    run.until(lambda: not run.rows("select 1 from sluice.skipped_range where filled_at is null"))
    assert run.listed() == set(network.state())
    assert max(run.tasks().values()) == 1
    assert flow.terminate() == 0


def test_a_failing_first_page_does_not_loop(here: Here) -> None:
    """B2: the relay's first page is skipped; a PDS's is narrowed, then retried with growing waits, and delays no other listing."""
    run = here({"repos": 1500, "records_per_repo": 1, "pdses": 1})
    network = run.simulation
    (relay,), (pds,) = network.relays, network.pdses
    network.set_faults(relay_list_500={"from": 1, "to": 5}, pds_list_500={"from": 1, "to": 5})
    settings = QUICK | {"list_hosts_recheck_seconds": 3600, "list_recheck_seconds": 3600}
    flow = run.start(relays=[relay], crawl_hosts=True, **settings)
    run.until(lambda: run.completed(relay))
    run.until(lambda: network.fired("pds_list_500") >= 10)
    rows = run.rows("select from_cursor, to_cursor from sluice.skipped_range where upstream = %s", relay)
    assert rows == [("", "1000")]
    requests = network.fired("pds_list_500")
    run.until(lambda: flow.health()["state"] == "idle")
    assert network.fired("pds_list_500") <= requests + 10  # narrowed to one entry, then it waits
    assert run.job(pds) == {}
    assert len(run.listed()) == 500
    assert flow.terminate() == 0


def test_a_range_that_keeps_failing_is_filled_by_the_pdses(here: Here) -> None:
    """N6, B2: the relay never answers for some accounts; every PDS is listed instead, though the settings do not ask for it."""
    run = here({"repos": 1500, "records_per_repo": 1, "pdses": 3})
    network = run.simulation
    (relay,) = network.relays
    network.set_faults(relay_list_500={"from": 250, "to": 260})
    flow = run.start(relays=[relay], list_page_size=100, **QUICK)
    run.until(lambda: run.completed(relay))
    run.until(lambda: run.rows("select 1 from sluice.skipped_range where filled_at is null"))
    active = {did for did, repo in network.state().items() if repo.active}
    assert active - run.listed()
    assert run.rows("select count(*) from sluice.host") == [(0,)]
    assert recover_now(run.settings, None)
    run.until(lambda: not run.rows("select 1 from sluice.skipped_range where filled_at is null"))
    assert run.rows("select filled_by from sluice.skipped_range where upstream = %s", relay) == [("pdses",)]
    assert network.fired("relay_list_500") > 5
    assert active <= run.listed()  # of inactive accounts a PDS is not believed, and there is nothing to fetch
    assert flow.terminate() == 0
    assert max(run.tasks().values()) == 1


def test_a_pds_whose_list_is_too_long_is_read_to_the_bound(here: Here) -> None:
    """B8: the bound holds across restarts, and over both of two PDSes."""
    run = here({"repos": 300, "records_per_repo": 1, "pdses": 2})
    network = run.simulation
    (relay,), hosts = network.relays, network.pdses
    network.set_faults(relay_list_500={"from": 0, "to": 10**9})  # what there is, only the PDSes say
    settings = QUICK | {"list_page_size": 20, "list_host_repos": 60}

    def found() -> dict[str, int]:
        return dict(run.rows("select host, count(*) from sluice.repo group by host"))

    for _ in range(2):
        flow = run.start(relays=[relay], crawl_hosts=True, **settings)
        refused = partial(flow.metric, "sluice_upstream_errors_total", flow="list_repos", reason="too_many_repos")
        run.until(lambda refused=refused: refused() >= 6)
        run.until(lambda: found().keys() == set(hosts))
        assert flow.terminate() == 0
        assert max(found().values()) <= 60
