"""Two thousand repos, a live writer and a network that fails in every way it can; in the end the tables equal it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fix_mirror import Mirror, prefix, wait_for
from fix_simulator import Simulation

pytestmark = pytest.mark.acceptance

REPOS = 2000

# The listing's page size is 200: pages that touch these uids fail until the faults end.
LISTING = {
    "relay_list_500": {"from": 1, "to": 20, "times": 12},  # the first page, which has no cursor to step over
    "relay_list_429": {"every": 15, "times": 4},
    "relay_empty_head": {"p": 0.01},
}
FETCHING = {
    "pds_429": {"p": 0.04, "retry_after": 1},
    "pds_500": {"p": 0.04},
    "pds_truncate": {"p": 0.04, "mode": "boundary"},
    "pds_hang": {"p": 0.01},
    "pds_trickle": {"p": 0.01, "chunk": 2000, "interval": 0.05},
    "pds_tamper": {"p": 0.04},
    "pds_stale": {"p": 0.3},
    "pds_bad_sig": {"p": 0.02},
    "pds_wrong_did": {"p": 0.02},
    "plc_500": {"p": 0.05},
    "plc_slow": {"p": 0.01, "seconds": 1},
}
STREAMING = {
    "drop": {"every": 300},
    "garbage": {"every": 110},
    "unknown_type": {"every": 130},
    "error_frame": {"every": 700},
    "silence": {"every": 1100, "times": 2},
    "lost_commit": {"every": 40},
    "duplicate": {"every": 25},
    "delay": {"every": 30},
    "seq_gap": {"every": 900},
}
LABELLING = {
    "label_drop": {"every": 40},
    "label_garbage": {"every": 30},
    "label_unknown_type": {"every": 35},
    "label_error_frame": {"every": 90},
    "label_silence": {"every": 100, "times": 1},
}
FAULTS: dict[str, Any] = {**LISTING, **FETCHING, **STREAMING, **LABELLING}


def unfired(simulation: Simulation) -> set[str]:
    """Faults that have not happened yet."""
    counts = simulation.faults()["fired"]
    return {name for name in FAULTS if not counts.get(name)}


def test_faulty_network_is_mirrored_exactly(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """G1, G5, G7: every fault fires; when they end, the tables equal the network's true state, last lost commits included."""
    simulation = simulator(
        seed=11, repos=REPOS, records_per_repo=15, labels=200, churn=0.03, window=50_000, faults=FAULTS, writer_rate=60
    )
    one: Mirror = mirror(
        simulation, bootstrap=log, database=database, topic_prefix=prefix(), skip_after_failures=3, skip_step=100
    )
    one.up()
    begun = time.monotonic()

    def mostly_there() -> bool:
        one.alive()
        phases = one.phases()
        return phases.get("sync", 0) > REPOS * 0.7 and not phases.get("pending", 0) > REPOS * 0.1

    wait_for(mostly_there, 120, lambda: f"{one.phases()}\n{one.last_lines()}")
    # the numeric cursor in the middle of the listing is poisoned next: later passes have to step over it
    simulation.set_faults(relay_list_500={"from": 900, "to": 950})
    wait_for(
        lambda: one.query("select count(*) from sluice.skipped_range where filled_at is null")[0][0] > 0,
        40,
        lambda: f"no range was stepped over: {one.query('select * from sluice.skipped_range')}",
    )
    wait_for(lambda: not unfired(simulation), 60, lambda: f"never fired: {unfired(simulation)}")
    fired = simulation.faults()["fired"]
    print(f"after {time.monotonic() - begun:.0f} s: {simulation.summary()}\nfired: {fired}\nphases: {one.phases()}")

    # events that are lost, and nothing ever follows them: only the next listing can tell
    simulation.set_faults(clear=True)
    simulation.writer(0)
    lost_before = fired["lost_commit"]
    simulation.set_faults(lost_commit={"p": 1.0})
    synced = [row[0] for row in one.query("select did from sluice.repo where phase = 'sync' order by did limit 20")]
    truth = simulation.state()
    last = [did for did in synced if truth[did].active]
    for did in last:
        simulation.op("create", did=did)
    assert simulation.fired("lost_commit") == lost_before + len(last) > lost_before

    one.quiesce()
    quiet = time.monotonic()
    one.await_truth(120)
    print(f"equal {time.monotonic() - quiet:.0f} s after the last event; phases {one.phases()}")
    lost = one.query("select count(*) from sluice.repo where did = any(%s) and attempt > 1", last)[0][0]
    assert lost == len(last)
    filled = "select count(*) filter (where filled_at is null), count(*) from sluice.skipped_range"
    wait_for(lambda: one.query(filled)[0][0] == 0, 30, "a range that was stepped over was never read")
    assert one.query(filled)[0][1] > 0
    assert one.interrupt() == 0
