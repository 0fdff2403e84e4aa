"""The firehose flow while hosts of did:web accounts hang: their events wait beside the stream, and nothing is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.support.flow_process import wait_until
from tests.support.live_flow import LiveBed
from tests.support.simulation import Simulation

Start = Callable[..., Simulation]

SIZE = {"repos": 60, "records_per_repo": 1, "window": 100_000, "pdses": 1, "inactive_share": 0.0}
HOSTS = 25
WEB_SECONDS = "connectors.identity.key_lookups.WEB_SECONDS"  # a held stream waits so long and more
HELD_SECONDS = 10.0
MOST_SECONDS = HELD_SECONDS / 2  # a shared machine takes a part of one


def cursor_of(bed: LiveBed, relay: str) -> int:
    query = "select position::bigint from sluice.cursor where flow = 'firehose' and upstream = %s"
    return int(rows[0][0]) if (rows := bed.rows(query, relay)) else 0


def last_seq(network: Simulation) -> int:
    return int(network.summary()["seqs"][0])


def heard(bed: LiveBed) -> dict[tuple[str, str], float]:
    """(DID, rev) of every commit in the log → when it was written, in seconds."""
    found = {}
    for message in bed.log.read("firehose_live"):
        value = json.loads(message.value())
        if value["type"] == "commit":
            found[value["did"], value["rev"]] = message.written
    return found


def test_hosts_that_hang_delay_no_event_of_another_account(
    simulator: Start, live_bed: LiveBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3, G8: 25 of them held every live event for 4 to 6 seconds, of which 3 are the time of a host."""
    monkeypatch.setattr(WEB_SECONDS, HELD_SECONDS)
    network = simulator(**SIZE, web_accounts=HOSTS)
    (relay,) = network.relays
    dids = list(network.state())
    web, others = dids[-HOSTS:], dids[:-HOSTS]
    assert {did.startswith("did:web:") for did in web} == {True}
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    for did in others:
        network.op("create", did=did)
    wait_until(lambda: cursor_of(live_bed, relay) >= last_seq(network))

    network.set_faults(did_web_hang=1.0)
    first = last_seq(network) + 1
    made = {(did, network.op("create", did=did)["rev"]) for did in web}
    wait_until(lambda: network.fired("did_web_hang") == HOSTS)
    times = {}
    for did in others:
        began = time.time()
        times[did, network.op("create", did=did)["rev"]] = began
    wait_until(lambda: times.keys() <= heard(live_bed).keys())
    assert cursor_of(live_bed, relay) < first  # their events are not durable
    assert made.isdisjoint(heard(live_bed))
    found = heard(live_bed)
    assert max(found[key] - began for key, began in times.items()) < MOST_SECONDS

    wait_until(lambda: cursor_of(live_bed, relay) >= last_seq(network))
    letters = [value for _, value in live_bed.messages("dead_letter")]
    assert {(letter["did"], letter["reason"]) for letter in letters} == {(did, "no_key") for did in web}
    assert flow.terminate() == 0


def test_a_kill_while_events_wait_loses_none(
    simulator: Start, live_bed: LiveBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1, G8: the cursor stands before the first event that waits, the others are in the log already."""
    monkeypatch.setattr(WEB_SECONDS, 600.0)  # they wait still when the kill comes, however late that is
    network = simulator(**SIZE, web_accounts=HOSTS)
    (relay,) = network.relays
    dids = list(network.state())
    network.set_faults(did_web_hang=1.0)
    made = {(did, network.op("create", did=did)["rev"]) for did in (*dids[-HOSTS:], *dids[:-HOSTS])}
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: len(heard(live_bed)) == len(dids) - HOSTS)
    wait_until(lambda: network.fired("did_web_hang") == HOSTS)
    flow.kill()
    assert len(heard(live_bed)) == len(dids) - HOSTS
    network.set_faults(clear=True)
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: cursor_of(live_bed, relay) >= last_seq(network))
    assert heard(live_bed).keys() == made
    assert live_bed.messages("dead_letter") == []
    assert flow.terminate() == 0


def test_a_stop_while_events_wait_ends_soon_and_the_restart_reads_them_again(
    simulator: Start, live_bed: LiveBed
) -> None:
    """G8, H1"""
    network = simulator(**SIZE, web_accounts=HOSTS)
    (relay,) = network.relays
    dids = list(network.state())
    network.set_faults(plc_429={"rate": 0, "retry_after": 300})  # for longer than a host is waited for
    made = {(did, network.op("create", did=did)["rev"]) for did in dids}
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: len(heard(live_bed)) == HOSTS)
    wait_until(lambda: network.fired("plc_429"))
    assert flow.terminate(20) == 0
    assert live_bed.messages("dead_letter") == []
    network.set_faults(clear=True)
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: cursor_of(live_bed, relay) >= last_seq(network))
    assert heard(live_bed).keys() == made
    assert flow.terminate() == 0
