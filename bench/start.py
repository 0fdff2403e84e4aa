"""Benchmark (h): the start of `sluice up`: seconds and CPU seconds until the first record is in PostgreSQL.

    .venv/bin/python -m bench.start [--runs 1]

`empty`: `sluice up --simulate` in an empty folder, with the simulated network's own start. `used`: a second `sluice up` over a folder that
is in sync, until it has stored an event that is younger than the start. CPU counts `up` and all processes below it, by kind.
Give several runs on a busy machine: the line has the median of each figure.
"""

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from bench.support.simulated import Simulated, simulated
from bench.support.stack import report, until
from control.process_status import registered
from protocol.encoding.timestamps import from_unix

NETWORK: dict[str, Any] = {"repos": 300, "records_per_repo": 30, "writer_rate": 20.0, "labelers": 1}
STOP_SECONDS = 90.0


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    runs = [one_run() for _ in range(options.runs)]
    middle = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    report("start", runs=options.runs, **middle)


def one_run() -> dict[str, float]:
    """Both starts, once."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        root.chmod(0o755)  # PostgreSQL runs as a user of its own
        empty = start(root / "empty" / "simulated", "--data-dir", str(root / "empty"), "--simulate")
        with simulated(**NETWORK) as network:
            given = ("--data-dir", str(root / "used"), *upstreams(network))
            start(root / "used", *given)
            used = start(root / "used", *given)
    return {f"empty_{name}": value for name, value in empty.items()} | {
        f"used_{name}": value for name, value in used.items()
    }


def upstreams(network: Simulated) -> list[str]:
    """The options that name a simulated network."""
    urls = network.urls
    return ["--relay", urls["relays"][0], "--plc", urls["plc"], "--labeler", urls["labelers"][0]]


def start(home: Path, *arguments: str) -> dict[str, float]:
    """Run `sluice up` until the first new record is there; `seconds`, `cpu`, and `cpu_KIND` until then."""
    began, begin = from_unix(time.time()), time.monotonic()
    environment = {"SLUICE_ALLOW_PRIVATE_HOSTS": "true", "PATH": "/usr/bin:/bin"}
    argv = [sys.executable, "-m", "cli", "up", *arguments]
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as up:
        try:
            used = (home / "database" / "pgdata").exists()
            until(lambda: up.poll() is not None or registered(home) is not None, every=0.02)
            found = registered(home)
            if found is None:
                raise RuntimeError(f"`sluice up` ended with exit code {up.poll()}")
            query = "select exists (select from sluice.record where indexed_at > %s or not %s)"
            with psycopg.connect(found.database, autocommit=True) as db:
                until(lambda: bool((db.execute(query, (began, used)).fetchone() or (False,))[0]), 120, every=0.02)
            seconds, cost = time.monotonic() - begin, cpu(up.pid)
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(STOP_SECONDS)
    return {"seconds": seconds, "cpu": sum(cost.values()), **{f"cpu_{kind}": spent for kind, spent in cost.items()}}


def cpu(pid: int) -> dict[str, float]:
    """CPU seconds by kind of process, of a process and all below it; ended ones count with their parent."""
    found: defaultdict[str, float] = defaultdict(float)
    top = psutil.Process(pid)
    for process in (top, *top.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            times = process.cpu_times()
            found[kind(process)] += times.user + times.system + times.children_user + times.children_system
    return found


def kind(process: psutil.Process) -> str:
    """What it is, from its command line."""
    words = process.cmdline()
    if process.name() in ("java", "postgres"):
        return process.name()
    if "run" in words or "simulate" in words:
        return next((word for word in reversed(words) if word[:1].isalpha()), "other")
    return "up" if "up" in words else "other"


if __name__ == "__main__":
    main()
