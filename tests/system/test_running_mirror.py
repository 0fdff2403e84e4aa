"""A mirror while it runs: how fast live events arrive, what it says of itself, and that it ends without remains."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from typing import Any

import psutil
import psycopg
import pytest

from control.process_status import registered
from tests.support.flow_process import is_running
from tests.support.simulation import Simulation
from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance


class Stillness:
    """When the machine stood still: a thread that sleeps for a moment, and woke a second late or more."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(60)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(0.05):
            now = time.monotonic()
            if now - last > 1.0:
                self._spans.append((last, now))
            last = now

    def left(self, begin: float, end: float) -> float:
        """Seconds of this time in which the machine did not stand still."""
        return end - begin - sum(max(0.0, min(end, until) - max(begin, since)) for since, until in self._spans)


class Prober:
    """Writes records to repos in sync, of `among` if given; `spans`: when each was sent, and when it was in its table."""

    def __init__(self, simulation: Simulation, database: str, seed: int, among: list[str] | None = None) -> None:
        self.spans: list[tuple[float, float]] = []
        self.error: BaseException | None = None
        self._simulation = simulation
        self._database = database
        self._rng = random.Random(seed)
        self._among = among
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.ended.set()
        self._thread.join(90)
        assert self.error is None, self.error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._database, autocommit=True) as db:
                while not self.ended.is_set():
                    self._probe(db)
        except BaseException as err:
            self.error = err

    def _probe(self, db: psycopg.Connection[Any]) -> None:
        among = "phase = 'sync' and (%(among)s::text[] is null or did = any(%(among)s))"
        found = db.execute(f"select did from sluice.repo where {among}", {"among": self._among}).fetchall()
        if not found:
            time.sleep(0.1)
            return
        sent = time.monotonic()
        written = self._simulation.op("create", did=self._rng.choice(found)[0])
        path = written["did"], *written["path"].split("/")
        row = "select 1 from sluice.record where did = %s and collection = %s and rkey = %s"
        while not db.execute(row, path).fetchone():
            assert time.monotonic() < sent + 60, f"{path} is not in the tables after a minute"
            time.sleep(0.02)
        self.spans.append((sent, time.monotonic()))


@pytest.mark.alone
def test_live_events_arrive_while_a_backfill_runs(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """A live event reaches its table within 5 s (p99) while the backfill runs at full speed."""
    simulation = simulator(seed=41, repos=800, records_per_repo=200, labelers=0, inactive_share=0.0)
    one: Mirror = mirror(
        simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix(), list_relist_seconds=600.0
    )
    one.up()
    one.started()
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
        return phases.get("pending", 0) + phases.get("backfill", 0) < 50

    wait_for(nearly_done, 180, lambda: f"{one.phases()}")
    seconds = time.monotonic() - begun
    written = one.query("select count(*) from sluice.record")[0][0] - rows
    for prober in probers:
        prober.stop()
    stillness.stop()
    found = sorted(stillness.left(*span) for prober in probers for span in prober.spans)
    p99 = found[int(len(found) * 0.99)]
    print(f"{len(found)} events: median {statistics.median(found):.2f} s, p99 {p99:.2f} s, worst {found[-1]:.2f} s;"
          f" backfill {written / seconds:.0f} records/s")  # fmt: skip
    assert len(found) > 20  # where each takes almost five seconds there are no more
    assert written > 50_000
    assert p99 < 5.0
    one.quiesce()
    one.await_truth(90)
    assert one.interrupt() == 0


def test_ctrl_c_ends_everything(mirror: Any) -> None:
    """`sluice up --simulate` shows what it does, and ends on Ctrl-C with exit 0 and nothing left of it."""
    one: Mirror = mirror(None)
    one.up("--simulate")
    found = simulated(one, 200)
    page = one.status()
    assert page["repos"]["sync"] > 150  # some may be fetched again
    assert {row["name"] for row in page["processes"]} >= {
        "index",
        "backfill",
        "firehose",
        "list-repos",
        "labels",
        "control",
    }
    assert page["partition_lags"]
    running = [process.pid for process in found.processes]
    ports = [process.port for process in found.processes if process.port]
    tree = psutil.Process(found.up).children(recursive=True)
    assert len(running) >= 9
    assert len(tree) >= 9
    assert one.interrupt() == 0
    gone(one, [*running, *(process.pid for process in tree)], ports)


def test_a_killed_up_leaves_nothing(mirror: Any) -> None:
    """SIGKILL of `sluice up`: its flows, servers and simulated network end with it."""
    one: Mirror = mirror(None)
    one.up("--simulate")
    found = simulated(one, 10)
    tree = psutil.Process(found.up).children(recursive=True)
    ports = [process.port for process in found.processes if process.port]
    os.kill(found.up, signal.SIGKILL)
    assert one.leader is not None
    assert one.leader.wait(60) == -signal.SIGKILL
    gone(one, [process.pid for process in tree], ports)


def simulated(one: Mirror, repos: int) -> Any:
    """The registry of `up --simulate`, once more than so many of its 300 repos are in sync."""
    folder = one.data_dir / "simulated"
    found = wait_for(lambda: one.alive() and registered(folder), 120, one.last_lines)

    def synced() -> bool:
        one.alive()
        with psycopg.connect(found.database) as db:
            row = db.execute("select count(*) from sluice.repo where phase = 'sync'").fetchone()
        return row is not None and row[0] > repos

    wait_for(synced, 120, one.last_lines)
    again = registered(folder)
    assert again is not None
    return again


def gone(one: Mirror, pids: list[int], ports: list[int]) -> None:
    """Nothing of it runs or listens."""

    def left() -> list[str]:
        alive = [f"pid {pid}" for pid in pids if is_running(pid)]
        return alive + one.left_behind()

    wait_for(lambda: not left(), 60, lambda: f"left: {left()}")
    listening = {one.laddr.port for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    assert not listening & set(ports)
