"""Scaling under load: index and backfill from 1 to 4 processes and back, a rolling restart, a kill; no losses, no duplicates.

    .venv/bin/python -m bench.scale [--repos 20000] [--writer 60] [--hold 8] [--session 10]

Processes, broker, database and rebalances are real; the simulated network keeps writing. Prints a line per step, and all as one
JSON line at the end:

- `records/s`, `live/s`: messages settled in the tables during the step.
- `ready`: seconds until the new processes were ready; `drain`: longest time from SIGTERM to the end of a process.
- `stall`: longest time without progress of a partition of the live topic that had lag: the cost of a take-over.
- `lag`: highest lag of the live topic; `caught up`: seconds from the begin of the step until it was below one second's messages.

At the end the tables equal the network (records, revs, roots, labels counted), `sluice audit --all` proves every repo from its
signed root, and `fetched twice` is the number of repos fetched again because of a kill.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.support.fleet import Fleet, Stopped
from bench.support.group_progress import Pace, rate, recovery, stall
from bench.support.simulated import Simulated, simulated
from bench.support.stack import Stack, report, stack, until
from schemas.topics import FIREHOSE_BACKFILL, FIREHOSE_LIVE

SCALED = ("index", "backfill")
LIVE, BACKFILL = FIREHOSE_LIVE, FIREHOSE_BACKFILL
SETTLE_SECONDS = 60.0
COLUMNS = ("step", "seconds", "records_per_second", "live_per_second", "ready", "drain", "stall", "lag", "caught_up")


@dataclass(frozen=True, slots=True)
class Step:
    """The cost of one change; times in seconds."""

    step: str
    seconds: float
    records_per_second: int
    live_per_second: int
    ready: float | None
    drain: float | None
    stall: float
    lag: int
    caught_up: float | None


Change = Callable[[], tuple[float | None, list[Stopped]]]


def measured(name: str, pace: Pace, fleet: Fleet, change: Change, *, hold: float, level: int) -> Step:
    """Make a change, wait `hold` seconds and until live events are settled promptly again. Raises if a process died."""
    begin = time.monotonic()
    ready, ended = change()
    for one in ended:
        if one.killed or one.code:
            raise RuntimeError(f"{name}: {one}")
    time.sleep(hold)
    until(lambda: pace.last.lag(LIVE) <= level, SETTLE_SECONDS)
    fleet.check()
    samples = pace.between(begin, time.monotonic())
    lag, caught_up = recovery(samples, LIVE, level)
    return Step(
        name,
        round(samples[-1].at - samples[0].at, 1),
        round(rate(samples, BACKFILL)),
        round(rate(samples, LIVE)),
        None if ready is None else round(ready, 1),
        round(max(one.seconds for one in ended), 1) if ended else None,
        round(stall(samples, LIVE), 1),
        lag,
        None if caught_up is None else round(caught_up, 1),
    )


def main() -> None:
    """Run, print a table and one JSON line. Exit code 1: the tables differ from the network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repos", type=int, default=20_000)
    parser.add_argument("--records-per-repo", type=int, default=30)
    parser.add_argument("--writer", type=float, default=60.0)
    parser.add_argument("--hold", type=float, default=8.0)
    parser.add_argument("--session", type=float, default=10.0)
    options = parser.parse_args()
    network = {"repos": options.repos, "records_per_repo": options.records_per_repo, "churn": 0.0, "prebuild": True}
    with simulated(**network, window=1_000_000) as sim, tempfile.TemporaryDirectory(prefix="sluice-scale-") as folder:
        overrides = {
            "relays": sim.urls["relays"],
            "labelers": sim.urls["labelers"],
            "plc": sim.urls["plc"],
            "pds_requests": 1_000_000,
            "transport_session_seconds": options.session,
            "lease_seconds": options.session,
        }
        with stack(**overrides) as running:
            fleet = Fleet(running.environment, Path(folder))
            pace = Pace(running.settings).start()
            try:
                steps = mirror(fleet, pace, sim, options)
                totals = prove(running, sim, pace)
            finally:
                fleet.stop(fleet.pods)
            pace.stop()
    report("scale", repos=options.repos, writer=options.writer, steps=[asdict(step) for step in steps], **totals)
    if totals["wrong"] or totals["audit"]:
        sys.exit(1)


def mirror(fleet: Fleet, pace: Pace, sim: Simulated, options: argparse.Namespace) -> list[Step]:
    """Run all steps; prints each at its end."""
    for kind in ("control", "firehose", "labels", *SCALED):
        fleet.start(kind).await_ready()
    until(lambda: sim.ask("/streams", {})[0]["readers"] > 0)
    sim.ask("/writer", {"rate": options.writer})
    fleet.start("list-repos").await_ready()
    until(lambda: pace.last.settled(BACKFILL) > 0)
    level = max(20, round(options.writer))
    steps: list[Step] = []
    print("  ".join(f"{name:>18}" for name in COLUMNS), flush=True)

    def step(name: str, change: Change) -> None:
        steps.append(measured(name, pace, fleet, change, hold=options.hold, level=level))
        print(
            "  ".join(f"{value if value is not None else '-'!s:>18}" for value in asdict(steps[-1]).values()),
            flush=True,
        )

    def killed() -> tuple[float | None, list[Stopped]]:
        for kind in SCALED:
            fleet.kill(fleet.of(kind)[0])
        return None, []

    step("1 of each", lambda: (None, []))
    for count in (2, 4, 3, 2):
        step(f"to {count}", lambda count=count: fleet.scale(count, *SCALED))  # type: ignore[misc] # mypy: lambda default
    step("rolling restart", lambda: fleet.roll(*SCALED))
    step("one of each killed", killed)
    step("to 2 again", lambda: fleet.scale(2, *SCALED))
    step("to 1", lambda: fleet.scale(1, *SCALED))
    step("restart of the rest", lambda: fleet.roll("control"))
    return steps


def prove(running: Stack, sim: Simulated, pace: Pace) -> dict[str, Any]:
    """Stop the writer, wait until everything is settled, compare."""
    sim.ask("/quiesce", {})
    moving = "select count(*) from sluice.repo where phase in ('pending', 'backfill')"
    until(lambda: running.sql(moving)[0][0] == 0 and not any(pace.last.lag(topic) for topic in (LIVE, BACKFILL)))
    audited = subprocess.run(
        [sys.executable, "-m", "cli", "audit", "--all", "--json"],
        env=running.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if audited.returncode:
        print(audited.stdout[-2000:], audited.stderr[-2000:], file=sys.stderr)
    return {
        "records": running.sql("select count(*) from sluice.record")[0][0],
        "wrong": differing(running, sim),
        "audit": audited.returncode,
        "fetched_twice": running.sql("select count(*) from sluice.repo where attempt > 1")[0][0],
    }


def differing(running: Stack, sim: Simulated) -> int:
    """Number of active repos whose rev, root or records differ from the network, and of inactive repos in sync."""
    rows: dict[str, dict[str, str]] = {}
    for did, path, cid in running.sql("select did, collection || '/' || rkey, cid from sluice.record"):
        rows.setdefault(did, {})[path] = cid
    repos = {row[0]: row[1:] for row in running.sql("select did, phase, rev, data from sluice.repo")}
    wrong = 0
    with urllib.request.urlopen(sim.urls["control"] + "/state", timeout=300) as answer:
        for line in answer:
            truth = json.loads(line)
            stored = repos.get(truth["did"], ("none", None, None))
            if truth["active"]:
                right = (
                    stored == ("sync", truth["rev"], truth["data"]) and rows.get(truth["did"], {}) == truth["records"]
                )
            else:
                right = stored[0] != "sync"
            wrong += not right
    return wrong


if __name__ == "__main__":
    main()
