"""Two relays that disagree over one network: at rest the tables are those of the PDSes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.simulation import Simulation
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance

LAGGING_STEPS = 400
"""Events that the second relay holds back."""
CLOCK_AHEAD_SECONDS = 240


def test_two_relays_that_disagree(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """G1: one relay drops 5 % of its commits and takes accounts down by itself; the other lags, has
    another order and repeats old account events; PDSes have their clocks four minutes ahead."""
    network: Simulation = simulator(
        seed=19, repos=60, records_per_repo=5, relays=2, labelers=0, churn=0.05, inactive_share=0.0
    )
    one: Mirror = mirror(network, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix())
    one.up()
    wait_for(lambda: one.alive() and one.phases() == {"sync": 60}, 120, one.last_lines)
    listen(one, network)
    lag(one, network)
    take_down_under_a_clock_ahead(one, network)
    network.streams(relay=1, held=False)
    wait_for(lambda: behind(one, network, 1) == 0, 120, one.last_lines)
    repeat_at_the_relay_that_is_followed(network)
    one.quiesce()
    assert unfired(network) == []
    one.await_truth(120)
    assert one.interrupt() == 0


FAULTS: dict[str, Any] = {
    "lost_commit": {"p": 0.05, "host": 0},
    "delay": {"every": 10, "hold": 50, "host": 1},
    "relay_old_account": {"host": 1},
    "pds_clock_ahead": {"seconds": CLOCK_AHEAD_SECONDS},
}


def unfired(network: Simulation) -> list[str]:
    """Faults that never happened."""
    return [name for name in FAULTS if not network.fired(name)]


def behind(one: Mirror, network: Simulation, relay: int) -> int:
    """How many numbers the mirror's cursor is behind a relay's last."""
    port = urlsplit(network.relays[relay]).port
    rows = one.query(
        "select position::bigint from sluice.cursor where flow = 'firehose' and upstream like %s", f"%:{port}%"
    )
    return int(network.summary()["seqs"][relay]) - (int(rows[0][0]) if rows else 0)


def listen(one: Mirror, network: Simulation) -> None:
    """Both relays are read."""
    did = next(iter(network.state()))

    def begun() -> bool:
        network.op("create", did=did)  # a relay that says nothing has no cursor
        return max(behind(one, network, relay) for relay in (0, 1)) < 20

    wait_for(begun, 120, one.last_lines)


def active_dids(network: Simulation, count: int) -> list[str]:
    return [did for did, account in network.state().items() if account.active][:count]


def lag(one: Mirror, network: Simulation) -> None:
    """The first relay loses commits; the second says nothing, and repeats account events in what it holds back."""
    network.set_faults(clear=True, **{name: FAULTS[name] for name in ("lost_commit", "delay", "relay_old_account")})
    network.streams(relay=1, held=True)
    network.writer(steps=LAGGING_STEPS)
    for did in active_dids(network, 5):
        network.op("takedown", did=did)
        network.op("activate", did=did)
    wait_for(lambda: behind(one, network, 0) == 0, 120, one.last_lines)
    assert behind(one, network, 1) > LAGGING_STEPS / 2
    network.set_faults(relay_old_account=None)


def take_down_under_a_clock_ahead(one: Mirror, network: Simulation) -> None:
    """A relay takes down what a PDS with its clock ahead has called active, and ends that: both hold."""
    network.set_faults(pds_clock_ahead=FAULTS["pds_clock_ahead"])
    dids = active_dids(network, 10)[5:]
    for did in dids:
        network.op("deactivate", did=did)
        network.op("activate", did=did)
        network.op("relay_takedown", did=did, relay=0)
    hidden = "select count(*) from sluice.repo where did = any(%s) and not active and status = 'takendown'"
    wait_for(lambda: one.query(hidden, dids) == [(len(dids),)], 120, one.last_lines)
    for did in dids:
        network.op("relay_restore", did=did, relay=0)


def repeat_at_the_relay_that_is_followed(network: Simulation) -> None:
    """What a relay repeats of its own sequence is believed, until the PDS has been asked."""
    before = network.fired("relay_old_account")
    network.set_faults(pds_clock_ahead=None, relay_old_account={"host": 0})
    for did in active_dids(network, 15)[10:]:
        network.op("deactivate", did=did)
        network.op("activate", did=did)
    network.writer(prebuild=200)
    assert network.fired("relay_old_account") >= before + 5
