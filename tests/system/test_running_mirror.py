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
from fix_mirror import Mirror, prefix, wait_for
from fix_simulator import Simulation
from flow_process import is_running

from control.watch import registered

pytestmark = pytest.mark.acceptance


class Prober:
    """Writes records to repos in sync and measures how long each takes to its table."""

    def __init__(self, simulation: Simulation, database: str, seed: int) -> None:
        self.seconds: list[float] = []
        self.error: BaseException | None = None
        self._simulation = simulation
        self._database = database
        self._rng = random.Random(seed)
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.ended.set()
        self._thread.join(30)
        assert self.error is None, self.error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._database, autocommit=True) as db:
                while not self.ended.is_set():
                    self._probe(db)
        except BaseException as err:
            self.error = err

    def _probe(self, db: psycopg.Connection[Any]) -> None:
        found = db.execute("select did from sluice.repo where phase = 'sync'").fetchall()
        if not found:
            time.sleep(0.1)
            return
        sent = time.monotonic()
        written = self._simulation.op("create", did=self._rng.choice(found)[0])
        path = written["did"], *written["path"].split("/")
        row = "select 1 from sluice.record where did = %s and collection = %s and rkey = %s"
        while not db.execute(row, path).fetchone():
            assert time.monotonic() < sent + 30, f"{path} is not in the tables after 30 s"
            time.sleep(0.02)
        self.seconds.append(time.monotonic() - sent)


def test_live_events_arrive_while_a_backfill_runs(simulator: Any, log: str, database: str, mirror: Any) -> None:
    """A live event reaches its table within 5 s (p99) while the backfill runs at full speed."""
    simulation = simulator(seed=41, repos=800, records_per_repo=200, labelers=0, inactive_share=0.0)
    one: Mirror = mirror(simulation, bootstrap=log, database=database, topic_prefix=prefix(), list_relist_seconds=600.0)
    one.up()
    one.started()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) > 20, 60, one.last_lines)
    probers = [Prober(simulation, database, n) for n in range(4)]
    begun, rows = time.monotonic(), one.query("select count(*) from sluice.record")[0][0]
    for prober in probers:
        prober.start()

    def nearly_done() -> bool:
        one.alive()
        assert not any(prober.error for prober in probers), [prober.error for prober in probers]
        phases = one.phases()
        return phases.get("pending", 0) + phases.get("backfill", 0) < 50

    wait_for(nearly_done, 120, lambda: f"{one.phases()}")
    seconds = time.monotonic() - begun
    written = one.query("select count(*) from sluice.record")[0][0] - rows
    for prober in probers:
        prober.stop()
    found = sorted(second for prober in probers for second in prober.seconds)
    p99 = found[int(len(found) * 0.99)]
    print(f"{len(found)} events: median {statistics.median(found):.2f} s, p99 {p99:.2f} s, worst {found[-1]:.2f} s;"
          f" backfill {written / seconds:.0f} records/s")  # fmt: skip
    assert len(found) > 50
    assert written > 50_000
    assert p99 < 5.0
    one.quiesce()
    one.await_truth(60)
    assert one.interrupt() == 0


def test_ctrl_c_ends_everything(mirror: Any) -> None:
    """`sluice up --simulate` shows what it does, and ends on Ctrl-C with exit 0 and nothing left of it."""
    one: Mirror = mirror(None)
    one.up("--simulate")
    found = simulated(one)
    page = one.status()
    assert page["repos"]["sync"] > 200
    assert {row["name"] for row in page["processes"]} >= {
        "index",
        "backfill",
        "firehose",
        "list-repos",
        "labels",
        "control",
    }
    assert page["standings"]
    running = [process.pid for process in found.processes]
    ports = [process.port for process in found.processes if process.port]
    tree = psutil.Process(found.up).children(recursive=True)
    assert len(running) >= 9
    assert len(tree) >= 9
    assert one.interrupt(60) == 0
    gone(one, [*running, *(process.pid for process in tree)], ports)


def test_a_killed_up_leaves_nothing(mirror: Any) -> None:
    """SIGKILL of `sluice up`: its flows, servers and simulated network end with it."""
    one: Mirror = mirror(None)
    one.up("--simulate")
    found = simulated(one)
    tree = psutil.Process(found.up).children(recursive=True)
    ports = [process.port for process in found.processes if process.port]
    os.kill(found.up, signal.SIGKILL)
    assert one.leader is not None
    assert one.leader.wait(10) == -signal.SIGKILL
    gone(one, [process.pid for process in tree], ports, 30)


def simulated(one: Mirror) -> Any:
    """The registry of `up --simulate`, once most of it is in sync."""
    folder = one.data_dir / "simulated"
    found = wait_for(lambda: one.alive() and registered(folder), 60, one.last_lines)

    def synced() -> bool:
        one.alive()
        with psycopg.connect(found.database) as db:
            row = db.execute("select count(*) from sluice.repo where phase = 'sync'").fetchone()
        return row is not None and row[0] > 200

    wait_for(synced, 60, one.last_lines)
    again = registered(folder)
    assert again is not None
    return again


def gone(one: Mirror, pids: list[int], ports: list[int], seconds: float = 10) -> None:
    """Nothing of it runs or listens."""

    def left() -> list[str]:
        alive = [f"pid {pid}" for pid in pids if is_running(pid)]
        return alive + one.left_behind()

    wait_for(lambda: not left(), seconds, lambda: f"left: {left()}")
    listening = {one.laddr.port for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    assert not listening & set(ports)
