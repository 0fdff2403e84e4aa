"""Benchmark (j): `sluice up` at rest: CPU, wake-ups and memory of every process while the network is silent.

    .venv/bin/python -m bench.idle [--seconds 30] [--settle 15]

Mirrors a simulated network without a writer until all repos are in sync, waits `--settle` seconds, and measures. `cpu_percent`: of one
core; `switches`: voluntary context switches a second, of all threads; `pss_mb`: resident memory, with a share of what is shared;
`rss_mb`: without. The simulator and this process do not count. `latency_p50_ms`: then, from a commit of the network to its visible
row, of `--events` commits, one at a time.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import psycopg

from bench.start import kind, upstreams
from bench.support.simulated import Simulated, simulated
from bench.support.stack import report, until
from control.process_status import registered

NETWORK: dict[str, Any] = {"repos": 300, "records_per_repo": 30, "writer_rate": 0.0, "churn": 0.0, "labelers": 1}
STOP_SECONDS = 90.0


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--settle", type=float, default=15.0)
    parser.add_argument("--events", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sluice-bench-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        root.chmod(0o755)  # PostgreSQL runs as a user of its own
        with simulated(**NETWORK) as network:
            argv = [sys.executable, "-m", "cli", "up", "--data-dir", str(root / "data"), *upstreams(network)]
            environment = {"SLUICE_ALLOW_PRIVATE_HOSTS": "true", "PATH": "/usr/bin:/bin"}
            with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as up:
                try:
                    figures = rest(up.pid, root / "data", network, options)
                finally:
                    up.terminate()
                    up.wait(STOP_SECONDS)
    report("idle", **figures)


def rest(pid: int, home: Path, network: Simulated, options: argparse.Namespace) -> dict[str, Any]:
    """Wait until everything is in sync, and measure."""
    until(lambda: registered(home) is not None, 120)
    database = getattr(registered(home), "database", "")
    accounts = network.accounts()
    with psycopg.connect(database, autocommit=True) as db:
        until(
            lambda: count(db, "select count(*) from sluice.repo where phase = 'sync'") >= len(accounts), 120, every=0.5
        )
    time.sleep(options.settle)
    begin, before = time.monotonic(), looks(pid)
    time.sleep(options.seconds)
    seconds, after = time.monotonic() - begin, looks(pid)
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one, look in after.items():
        mine = found[look["kind"]]
        for name, per in (("cpu_percent", 100.0), ("switches", 1.0)):
            mine[name] += (look[name] - before.get(one, {name: 0.0})[name]) / seconds * per
        mine["pss_mb"] += look["pss_mb"]
        mine["rss_mb"] += look["rss_mb"]
    total = {
        name: sum(mine[name] for mine in found.values()) for name in ("cpu_percent", "switches", "pss_mb", "rss_mb")
    }
    with psycopg.connect(database, autocommit=True) as db:
        late = [latency(db, network, did) for did, _ in accounts[: options.events]]
    slow = {"latency_p50_ms": round(statistics.median(late)), "latency_max_ms": round(max(late))} if late else {}
    return {**rounded(total), **slow, "processes": {name: rounded(mine) for name, mine in sorted(found.items())}}


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """With one digit."""
    return {name: round(value, 1) for name, value in figures.items()}


def count(db: psycopg.Connection[Any], query: str) -> int:
    """One number."""
    return int((db.execute(query).fetchone() or (0,))[0])


def latency(db: psycopg.Connection[Any], network: Simulated, did: str) -> float:
    """Milliseconds from a commit of the network to its visible row."""
    time.sleep(0.37)  # so that it meets no process in step
    query = "select exists (select from sluice.record where did = %s and rev >= %s)"
    began = time.monotonic()
    made = network.ask("/op", {"op": "create", "did": did})
    until(lambda: bool((db.execute(query, (did, made["rev"])).fetchone() or (False,))[0]), 30, every=0.002)
    return (time.monotonic() - began) * 1000


def looks(pid: int) -> dict[int, dict[str, Any]]:
    """CPU seconds, voluntary switches and memory of a process and all below it, by pid."""
    found = {}
    top = psutil.Process(pid)
    for process in (top, *top.children(recursive=True)):
        try:
            times, memory = process.cpu_times(), process.memory_full_info()
            found[process.pid] = {
                "kind": kind(process),
                "cpu_percent": times.user + times.system,
                "switches": switches(process.pid),
                "pss_mb": memory.pss / 1e6,
                "rss_mb": memory.rss / 1e6,
            }
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def switches(pid: int) -> float:
    """Voluntary context switches of all threads of a process."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        line = next(line for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt_switches"))
        total += int(line.split()[1])
    return float(total)


if __name__ == "__main__":
    main()
