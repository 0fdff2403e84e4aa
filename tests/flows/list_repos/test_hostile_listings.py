"""The list_repos flow on relays and PDSes whose lists are hostile or broken."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.faults.hostile_lists import KINDS
from tests.flows.list_repos.listing_here import Here, ListingHere

QUICK: dict[str, Any] = {"list_retry_seconds": 0.02, "list_recheck_seconds": 0.5, "list_hosts_recheck_seconds": 0.5}


def checkpoint(run: ListingHere, upstream: str) -> dict[str, Any]:
    rows = run.rows("select checkpoint from sluice.backfill_job where name = %s", f"list {upstream}")
    return dict(rows[0][0]) if rows else {}


def test_a_range_that_always_fails_is_isolated_and_the_rest_is_listed(here: Here) -> None:
    """N6, H5, B2: 620 errors in 85 seconds, a retry_count of 0, and repos 61 to 150 unknown."""
    run = here({"repos": 150, "records_per_repo": 1, "pdses": 1})
    network = run.simulation
    (relay,) = network.relays
    network.set_faults(list_short={"most": 20}, relay_list_500={"from": 41, "to": 60})
    settings = QUICK | {"list_recheck_seconds": 3600.0}
    flow = run.start(relays=[relay], **settings)
    run.until(lambda: run.rows("select 1 from sluice.skipped_range"))
    assert network.fired("relay_list_500") == 5
    assert network.fired("list_short") >= 2
    run.db.execute("update sluice.skipped_range set next_retry_at = now()")
    run.until(lambda: run.rows("select 1 from sluice.skipped_range where retry_count > 0"))
    query = (
        "select from_cursor, to_cursor, retry_count, next_retry_at > now() + interval '50 s' from sluice.skipped_range"
    )
    assert run.rows(query) == [("40", "60", 1, True)]
    in_order = list(network.state())  # as the relay numbers them
    assert run.listed() == {did for n, did in enumerate(in_order, 1) if not 41 <= n <= 60}
    assert network.fired("relay_list_500") <= 5 + 36
    assert run.rows("select position from sluice.cursor where flow = 'list_repos'") == [("142",)]
    for rounds in (2, 3):  # nothing else asks for it
        before = network.fired("relay_list_500")
        run.db.execute("update sluice.skipped_range set next_retry_at = now()")
        run.until(lambda n=rounds: run.rows("select 1 from sluice.skipped_range where retry_count = %s", n))
        assert 12 <= network.fired("relay_list_500") - before <= 18
    delay = run.rows("select next_retry_at > now() + interval '200 s' from sluice.skipped_range")
    assert delay == [(True,)]
    network.set_faults(clear=True)
    run.db.execute("update sluice.skipped_range set next_retry_at = now()")
    run.until(lambda: not run.rows("select 1 from sluice.skipped_range where filled_at is null"))
    assert run.listed() == set(in_order)
    assert flow.terminate() == 0


def test_lists_of_every_malformed_kind_stop_nothing(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    """H2, H3, H8: a 2 KB cursor and invalid UTF-8 ended the flow, again and again."""
    run = here({"repos": 60, "records_per_repo": 1, "pdses": 2})
    network = run.simulation
    (relay,), hosts = network.relays, network.pdses
    network.set_faults(list_malformed={"kind": "long_cursor"}, hosts_malformed={"times": 7})
    flow = run.start(relays=[relay], crawl_hosts=True, list_page_size=20, **QUICK)
    run.until(lambda: "cut" in checkpoint(run, relay))
    assert run.rows("select 1 from sluice.skipped_range") == []
    page = run.until(lambda: (page := flow.health())["state"] == "failing" and page)
    assert f"{relay}: a cursor of more than 1000 bytes" in page["why"]
    network.set_faults(list_malformed={})
    begun = network.fired("list_malformed")
    run.until(lambda: network.fired("list_malformed") >= begun + 2 * len(KINDS))
    assert flow.health()["why"].isprintable()
    network.set_faults(list_malformed=None)
    run.db.execute("update sluice.skipped_range set next_retry_at = now()")
    run.until(lambda: "cut" not in checkpoint(run, relay) and run.listed() == set(network.state()))
    network.set_faults(clear=True)
    run.until(lambda: all(checkpoint(run, host).get("done") for host in hosts))
    assert network.fired("hosts_malformed") > 0
    assert flow.terminate() == 0
    assert not [record for record in caplog.records if record.exc_info and record.name == "list_repos"]


def test_repeating_cursors_end_their_pass_with_a_reason(here: Here) -> None:
    """H5: of a relay's repos, of a PDS's, and of a relay's hosts."""
    run = here({"repos": 30, "records_per_repo": 1, "pdses": 1})
    network = run.simulation
    (relay,), (pds,) = network.relays, network.pdses
    network.set_faults(list_cycle={}, hosts_cycle={})
    slow = QUICK | {"list_recheck_seconds": 3600.0, "list_hosts_recheck_seconds": 3600.0}
    flow = run.start(relays=[relay], crawl_hosts=True, list_page_size=20, **slow)
    for url in (relay, pds):
        found = run.until(lambda url=url: (point := checkpoint(run, url)).get("done") and point)
        assert found["cut"] == "the cursors repeat"
    assert network.fired("list_cycle") <= 10
    assert network.fired("hosts_cycle") <= 4
    assert flow.terminate() == 0
