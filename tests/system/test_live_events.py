"""How fast live events arrive while a backfill runs."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from tests.support.size import sized
from tests.support.whole_mirror import Mirror, prefix, wait_for
from tests.system.live_probe import Prober, Stillness

pytestmark = [pytest.mark.acceptance, pytest.mark.alone]

REPOS, RECORDS = sized(250, 800), 200
LATENCY_SECONDS = sized(60.0, 5.0)  # 5 s on a machine with nothing else to do
MOST_PASSED = REPOS * RECORDS * sized(4, 2) // 5


@pytest.mark.timeout(600)
def test_live_events_arrive_while_a_backfill_runs(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """A live event does not wait behind the backfill, which runs at full speed. In `make test-long` it reaches its table
    within 5 s (p99)."""
    simulation = simulator(seed=41, repos=REPOS, records_per_repo=RECORDS, labelers=0, inactive_share=0.0)
    one: Mirror = mirror(
        simulation,
        kafka_bootstrap=log,
        database=database,
        kafka_topic_prefix=prefix(),
        list_relist_seconds=600.0,
        skip_after_failures=1000,
    )
    simulation.set_faults(relay_list_500=1.0)  # nothing to fetch until all is up
    one.up()
    one.started()
    wait_for(lambda: one.alive() and simulation.fired("relay_list_500"), 120, one.last_lines)
    simulation.set_faults(relay_list_500=None)
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 20, 120, one.last_lines)
    stillness = Stillness()
    probers = [Prober(simulation, database, n) for n in range(4)]
    begun, rows = time.monotonic(), one.query("select count(*) from sluice.record")[0][0]
    for prober in probers:
        prober.start()

    def nearly_done() -> bool:
        one.alive()
        assert not any(prober.error for prober in probers), [prober.error for prober in probers]
        phases = one.phases()
        return phases.get("pending", 0) + phases.get("backfill", 0) < REPOS // 16

    wait_for(nearly_done, 180, lambda: f"{one.phases()}")
    seconds = time.monotonic() - begun
    written = one.query("select count(*) from sluice.record")[0][0] - rows
    for prober in probers:
        prober.stop()
    stillness.stop()
    passed = sorted(count for prober in probers for count in prober.passed)
    found = sorted(stillness.left(*span) for prober in probers for span in prober.spans)
    p99 = found[int(len(found) * 0.99)]
    print(f"{len(found)} events: median {statistics.median(found):.2f} s, p99 {p99:.2f} s, worst {found[-1]:.2f} s;"
          f" passed by {passed[-5:]} messages at most;"
          f" backfill {written / seconds:.0f} records/s")  # fmt: skip
    assert len(found) > len(probers)
    assert written > 0.5 * REPOS * RECORDS
    assert passed[int(len(found) * 0.99)] < MOST_PASSED
    assert p99 < LATENCY_SECONDS
    one.quiesce()
    one.await_truth(120)
    assert one.interrupt() == 0
