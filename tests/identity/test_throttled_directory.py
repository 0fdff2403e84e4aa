"""The firehose flow while the PLC directory limits its requests: slower, and whole."""

from __future__ import annotations

from collections.abc import Callable

from connectors.identity.key_lookups import THROTTLED
from tests.support.flow_process import wait_until
from tests.support.live_flow import LiveBed
from tests.support.simulation import Simulation


def test_a_directory_that_limits_our_requests_delays_the_firehose_and_refuses_nothing(
    simulator: Callable[..., Simulation], live_bed: LiveBed
) -> None:
    """N1, G8: a commit without a key became a dead letter, and a DID without one was not asked for again for a minute."""
    network = simulator(repos=60, records_per_repo=1, window=100_000, pdses=1)
    (relay,) = network.relays
    network.set_faults(plc_429={"rate": 0, "retry_after": 1})
    active = {did for did, truth in network.state().items() if truth.active}
    for did in active:
        network.op("create", did=did)
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: flow.health() == {"flow": "firehose", "state": "failing", "why": THROTTLED, "ready": True})
    assert live_bed.messages("firehose_live") == live_bed.messages("dead_letter") == []
    network.set_faults(plc_429={"rate": 20, "retry_after": 1})
    last = int(network.summary()["seqs"][0])
    cursor = "select 1 from sluice.cursor where flow = 'firehose' and upstream = %s and position::bigint >= %s"
    wait_until(lambda: live_bed.rows(cursor, relay, last))
    assert live_bed.messages("dead_letter") == []
    heard = {key for key, value in live_bed.messages("firehose_live") if value["type"] == "commit"}
    assert heard == active
    assert network.fired("plc_429") > 1
    assert flow.metric("sluice_directory_throttled_total") == network.fired("plc_429")
    assert flow.story().count("limits our requests") == 1
