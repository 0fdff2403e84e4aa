"""The list_repos flow on relays and PDSes whose lists are hostile or broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulator.faults.hostile_lists import KINDS
from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import wait_until
from tests.support.simulation import Simulation

Start = Callable[..., Simulation]
QUICK: dict[str, Any] = {"list_retry_seconds": 0.02, "list_recheck_seconds": 0.5, "list_hosts_recheck_seconds": 0.5}


def listed(bed: FlowBed) -> set[str]:
    return {row[0] for row in bed.rows("select did from sluice.repo")}


def checkpoint(bed: FlowBed, upstream: str) -> dict[str, Any]:
    rows = bed.rows("select checkpoint from sluice.backfill_job where name = %s", f"list {upstream}")
    return dict(rows[0][0]) if rows else {}


def test_a_range_that_always_fails_is_isolated_and_the_rest_is_listed(simulator: Start, flow_bed: FlowBed) -> None:
    """N6, H5, B2: 620 errors in 85 seconds, a retry_count of 0, and repos 61 to 150 unknown."""
    network = simulator(repos=150, records_per_repo=1, pdses=1)
    (relay,) = network.relays
    network.set_faults(list_short={"most": 20}, relay_list_500={"from": 41, "to": 60})
    settings = QUICK | {"list_recheck_seconds": 3600.0}
    flow = flow_bed.start("list_repos", relays=[relay], **settings)
    wait_until(lambda: flow_bed.rows("select 1 from sluice.skipped_range"))
    assert network.fired("relay_list_500") == 5
    assert network.fired("list_short") >= 2
    flow_bed.db.execute("update sluice.skipped_range set next_retry_at = now()")
    wait_until(lambda: flow_bed.rows("select 1 from sluice.skipped_range where retry_count > 0"))
    query = (
        "select from_cursor, to_cursor, retry_count, next_retry_at > now() + interval '50 s' from sluice.skipped_range"
    )
    assert flow_bed.rows(query) == [("40", "60", 1, True)]
    in_order = list(network.state())  # as the relay numbers them
    assert listed(flow_bed) == {did for n, did in enumerate(in_order, 1) if not 41 <= n <= 60}
    assert network.fired("relay_list_500") <= 5 + 36
    assert flow_bed.rows("select position from sluice.cursor where flow = 'list_repos'") == [("142",)]
    for rounds in (2, 3):  # nothing else asks for it
        before = network.fired("relay_list_500")
        flow_bed.db.execute("update sluice.skipped_range set next_retry_at = now()")
        wait_until(lambda n=rounds: flow_bed.rows("select 1 from sluice.skipped_range where retry_count = %s", n))
        assert 12 <= network.fired("relay_list_500") - before <= 18
    delay = flow_bed.rows("select next_retry_at > now() + interval '200 s' from sluice.skipped_range")
    assert delay == [(True,)]
    network.set_faults(clear=True)
    flow_bed.db.execute("update sluice.skipped_range set next_retry_at = now()")
    wait_until(lambda: not flow_bed.rows("select 1 from sluice.skipped_range where filled_at is null"))
    assert listed(flow_bed) == set(in_order)
    assert flow.terminate() == 0


def test_lists_of_every_malformed_kind_stop_nothing(simulator: Start, flow_bed: FlowBed) -> None:
    """H2, H3, H8: a 2 KB cursor and invalid UTF-8 ended the flow, again and again."""
    network = simulator(repos=60, records_per_repo=1, pdses=2)
    (relay,), hosts = network.relays, network.pdses
    network.set_faults(list_malformed={"kind": "long_cursor"}, hosts_malformed={"times": 7})
    flow = flow_bed.start("list_repos", relays=[relay], crawl_hosts=True, list_page_size=20, **QUICK)
    wait_until(lambda: "cut" in checkpoint(flow_bed, relay))
    assert flow_bed.rows("select 1 from sluice.skipped_range") == []
    page = wait_until(lambda: (page := flow.health())["state"] == "failing" and page)
    assert f"{relay}: a cursor of more than 1000 bytes" in page["why"]
    network.set_faults(list_malformed={})
    begun = network.fired("list_malformed")
    wait_until(lambda: network.fired("list_malformed") >= begun + 2 * len(KINDS))
    assert flow.health()["why"].isprintable()
    network.set_faults(list_malformed=None)
    flow_bed.db.execute("update sluice.skipped_range set next_retry_at = now()")
    wait_until(lambda: "cut" not in checkpoint(flow_bed, relay) and listed(flow_bed) == set(network.state()))
    network.set_faults(clear=True)
    wait_until(lambda: all(checkpoint(flow_bed, host).get("done") for host in hosts))
    assert network.fired("hosts_malformed") > 0
    assert flow.terminate() == 0
    assert "Traceback" not in flow.log_file.read_text()


def test_repeating_cursors_end_their_pass_with_a_reason(simulator: Start, flow_bed: FlowBed) -> None:
    """H5: of a relay's repos, of a PDS's, and of a relay's hosts."""
    network = simulator(repos=30, records_per_repo=1, pdses=1)
    (relay,), (pds,) = network.relays, network.pdses
    network.set_faults(list_cycle={}, hosts_cycle={})
    slow = QUICK | {"list_recheck_seconds": 3600.0, "list_hosts_recheck_seconds": 3600.0}
    flow = flow_bed.start("list_repos", relays=[relay], crawl_hosts=True, list_page_size=20, **slow)
    for url in (relay, pds):
        found = wait_until(lambda url=url: (point := checkpoint(flow_bed, url)).get("done") and point)
        assert found["cut"] == "the cursors repeat"
    assert network.fired("list_cycle") <= 10
    assert network.fired("hosts_cycle") <= 4
    assert flow.terminate() == 0
