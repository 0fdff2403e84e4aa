"""Memory under attack: everything that once bloated a process, sent to a whole mirror at once."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from typing import Any

import psutil
import pytest

from tests.support.simulation import Simulation
from tests.support.size import sized
from tests.support.whole_mirror import Mirror, prefix, wait_for
from tests.system.live_probe import Prober, Stillness

pytestmark = [pytest.mark.acceptance, pytest.mark.alone]

MOST_MB = 400
LATENCY_SECONDS = sized(60.0, 15.0)  # beside other tests it says only that they go on arriving
REPOS = sized(600, 2000)
SECONDS = sized(15.0, 60.0)
HOSTILE = {
    "hostile": {"every": 20},
    "garbage": {"every": 30},
    "label_hostile": {"every": 10},
    "label_giant": {"every": 5},
    "list_malformed": {"p": 0.1, "kind": "huge"},
    "leaf_repeated": {"every": 20},
    "leaf_large": {"every": 50},
}
OPS = 200


class Peaks:
    """A thread that notes the highest resident memory of every process of a mirror, by name."""

    def __init__(self, mirror: Mirror) -> None:
        self.mb: dict[str, float] = defaultdict(float)
        self._processes = {
            one.name: psutil.Process(one.pid)
            for one in mirror.registry.processes
            if one.name not in ("kafka", "postgres")
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(30)

    def gone(self) -> list[str]:
        """Processes that have ended since."""
        return [name for name, process in self._processes.items() if not process.is_running()]

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            for name, process in self._processes.items():
                try:
                    self.mb[name] = max(self.mb[name], process.memory_info().rss / 2**20)
                except psutil.NoSuchProcess:
                    continue


def repeated(network: Simulation, did: str, size: int, marker: int) -> None:
    """A commit of 200 creates of one record, whose text grows sixfold as JSON."""
    record = {"$type": "app.bsky.feed.post", "text": "\x01" * size, "createdAt": "2026-01-01T00:00:00.000Z"}
    paths = [f"app.bsky.feed.post/bomb{marker:04d}x{n:04d}" for n in range(OPS)]
    network.op("commit", did=did, ops=[{"action": "create", "paths": paths, "record": record}])


@pytest.mark.timeout(600)
def test_no_process_grows_while_everything_hostile_is_sent(
    simulator: Any, log: str, database: str, mirror: Any
) -> None:
    """G6, H2, H3: no process above 400 MB, none ends, and live events of others go on arriving."""
    network: Simulation = simulator(
        seed=43,
        repos=REPOS,
        records_per_repo=15,
        labels=200,
        faults=HOSTILE,
        inactive_share=0.0,
        window=100_000,
        writer_repos=REPOS // 4,
    )
    dids = [*network.state()]
    attackers = dids[:40:2]
    others = dids[41::2]  # the writer, whose commits carry the odd leaves, has every fourth account
    rng = random.Random(43)
    for n, did in enumerate(attackers[:5]):  # their snapshots carry it as well
        repeated(network, did, 10_000, n)
    one: Mirror = mirror(
        network, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix(), list_relist_seconds=30.0
    )
    one.up()
    one.started()
    peaks, stillness = Peaks(one), Stillness()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 50, 120, one.last_lines)
    network.writer(20)
    probers = [Prober(network, database, n, others) for n in range(4)]
    for prober in probers:
        prober.start()
    ends, sent = time.monotonic() + SECONDS, 0
    while time.monotonic() < ends:
        one.alive()
        repeated(network, rng.choice(attackers), rng.choice((400, 9_000, 30_000)), 100 + sent)
        sent += 1
        time.sleep(1.0)
    for prober in probers:
        prober.stop()
    stillness.stop()
    wait_for(lambda: one.phases().get("sync", 0) > 0.95 * REPOS, 180, lambda: f"{one.phases()} {one.last_lines()}")
    unfired = [name for name in HOSTILE if not network.fired(name)]
    wait_for(lambda: all(map(network.fired, unfired)), 120, f"never fired: {unfired}")
    peaks.stop()
    spans = sorted(stillness.left(*span) for prober in probers for span in prober.spans)
    p99 = spans[int(len(spans) * 0.99)]
    fired = {name: network.fired(name) for name in HOSTILE}
    print(f"memory: {sent} repeated commits, faults {fired}, peaks { ({k: round(v) for k, v in peaks.mb.items()}) } MB")
    print(
        f"{len(spans)} events of others, median {spans[len(spans) // 2]:.2f} s, p99 {p99:.2f} s, worst {spans[-1]:.2f} s"
    )
    assert [name for name, count in fired.items() if not count] == []
    assert peaks.gone() == []
    assert {name: round(mb) for name, mb in peaks.mb.items() if mb > MOST_MB} == {}
    assert len(spans) > sized(len(probers), SECONDS)
    assert p99 < LATENCY_SECONDS
