"""`sluice up` whole: it mirrors a network, survives kills of its processes and servers, drains, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from control.process_status import Registry, check_process, registered
from tests.support.flow_process import is_running
from tests.support.simulation import Simulation

pytestmark = [pytest.mark.timeout(600), pytest.mark.acceptance]
SLUICE = Path(sys.executable).with_name("sluice")
WAIT_SECONDS = 240.0
STOP_SECONDS = 120.0
END_PHASES = {"sync", "unavailable", "failed"}


@pytest.fixture
def home() -> Iterator[Path]:
    """A data folder that the embedded PostgreSQL's user can reach."""
    with tempfile.TemporaryDirectory(prefix="sluice-up-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def command(*arguments: str, **variables: str) -> tuple[list[str], dict[str, str]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    return [str(SLUICE), *arguments], env | variables


@contextmanager
def running(home: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`sluice up` in a data folder; what it printed is in up.log there."""
    argv, env = command("up", "--data-dir", str(home), *arguments, **variables)
    with (home / "up.log").open("a") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert process is None or process.poll() is None, "up has ended"
        assert time.monotonic() < deadline, "not within time"
        time.sleep(0.1)
    return found


def mirrored(home: Path) -> dict[str, dict[str, str]]:
    """DID → path → CID of repos in sync; {} while the database is away or work is left."""
    found = registered(home)
    if found is None:
        return {}
    try:
        with psycopg.connect(found.database, connect_timeout=5) as db:
            repos = dict(db.execute("select did, phase from sluice.repo").fetchall())
            if not repos or not set(repos.values()) <= END_PHASES:
                return {}
            rows = db.execute("select did, collection || '/' || rkey, cid from sluice.record").fetchall()
    except psycopg.Error:
        return {}
    records: dict[str, dict[str, str]] = {did: {} for did, phase in repos.items() if phase == "sync"}
    for did, path, cid in rows:
        if did in records:
            records[did][path] = cid
    return records


def true_records(simulation: Simulation) -> dict[str, dict[str, str]]:
    return {did: repo.records for did, repo in simulation.state().items() if repo.active}


def options(simulation: Simulation) -> tuple[str, ...]:
    return ("--relay", simulation.relays[0], "--plc", simulation.plc, "--labeler", simulation.labelers[0])


def pids(found: Registry) -> list[int]:
    return [found.up, *(process.pid for process in found.processes)]


def gone(numbers: list[int]) -> bool:
    return not any(is_running(pid) for pid in numbers)


def test_a_simulated_network_until_synced(home: Path) -> None:
    """`--until-synced` exits 0 and prints one JSON line of totals; progress goes to standard error."""
    argv, env = command("up", "--simulate", "--until-synced", "--workers", "2", "--data-dir", str(home))
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    totals = json.loads(line)
    assert totals["repos"]["sync"] > 250
    assert totals["repos"]["pending"] == totals["repos"]["backfill"] == totals["repos"]["failed"] == 0
    assert totals["records"] > 5000
    assert totals["labels"] >= 100
    assert totals["records_per_second"] > 0
    assert {"backfill", "index", "firehose", "control", "labels", "list-repos"} <= set(totals["peak_rss_mb"])
    assert all(peak > 20 for kind, peak in totals["peak_rss_mb"].items() if kind != "postgres")
    assert "| lag:" in ended.stderr
    assert "index-2" not in ended.stderr.replace("index-2: state", ""), "nothing to say of a worker that did its work"
    assert (home / "simulated" / "logs" / "index-2.log").exists()
    assert not (home / "simulated" / "processes.json").exists()


def test_kills_restarts_and_a_clean_end(home: Path, simulator: Callable[..., Simulation]) -> None:
    """G1: kill -9 of a flow, of the broker and of the database; then Ctrl-C: exit 0 and nothing left running."""
    simulation = simulator(repos=60, records_per_repo=15, writer_rate=20, seed=5)
    with running(home, *options(simulation), SLUICE_ALLOW_PRIVATE_HOSTS="true") as up:
        until(lambda: mirrored(home), up)
        first = until(lambda: registered(home), up)  # as they run now: one may have been started again meanwhile
        index = next(process for process in first.processes if process.kind == "index")
        assert "index" in Path(f"/proc/{index.pid}/cmdline").read_text(), "`ps` tells which process it is"
        os.kill(index.pid, signal.SIGKILL)
        for kind in ("postgres", "kafka"):
            os.kill(next(process.pid for process in first.processes if process.kind == kind), signal.SIGKILL)
        changed = until(lambda: _restarted(home, index.pid), up)
        simulation.quiesce()
        truth = true_records(simulation)
        until(lambda: mirrored(home) == truth, up)
        text = (home / "up.log").read_text()
        for name in ("index", "postgres", "kafka"):
            assert f" {name}: ended" in text, "the kill was noticed"
        up.send_signal(signal.SIGINT)
        assert up.wait(STOP_SECONDS) == 0
        until(lambda: gone(pids(first) + pids(changed)))
        assert not (home / "processes.json").exists()


def _restarted(home: Path, killed: int) -> Registry | None:
    found = registered(home)
    index = [process for process in found.processes if process.kind == "index"] if found else []
    return found if index and index[0].pid != killed and check_process(index[0]).ready else None


def at_rest(home: Path) -> dict[str, Any] | None:
    """`status --json`, once every process answers (a busy one may not, within the seconds it has) and cursors are stored."""
    argv, env = command("status", "--json", "--data-dir", str(home))
    page = json.loads(subprocess.run(argv, env=env, capture_output=True, check=True, timeout=STOP_SECONDS).stdout)
    answer = {process["state"] for process in page["processes"]} <= {"idle", "working", "running"}
    stored = {cursor["flow"] for cursor in page["cursors"]} >= {"list_repos", "firehose"}
    return page if answer and stored else None


def test_status_a_second_up_and_a_killed_one(home: Path, simulator: Callable[..., Simulation]) -> None:
    """kill -9 of `up` leaves nothing running, and the next one goes on with the same data."""
    simulation = simulator(repos=20, records_per_repo=5, seed=6)
    variables = {"SLUICE_ALLOW_PRIVATE_HOSTS": "true"}
    with running(home, *options(simulation), **variables) as up:
        found = until(lambda: registered(home), up)
        until(lambda: mirrored(home) == true_records(simulation), up)
        page = until(lambda: at_rest(home), up)
        assert page["repos"]["sync"] == len(true_records(simulation))
        assert {process["kind"] for process in page["processes"]} >= {"index", "backfill", "kafka", "postgres"}
        assert page["lag"]["index/firehose_backfill"] == 0
        assert not any(standing["past_end"] for standing in page["partition_lags"])
        argv, env = command("cursors", "list", "--data-dir", str(home))
        assert simulation.relays[0] in subprocess.run(argv, env=env, capture_output=True, check=True, text=True).stdout

        argv, env = command("up", "--data-dir", str(home), *options(simulation), **variables)
        second = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=STOP_SECONDS, check=False)
        assert second.returncode == 2
        assert "runs in" in second.stderr

        up.kill()
        up.wait()
        until(lambda: gone(pids(found)))
    argv, env = command("up", "--data-dir", str(home), "--until-synced", *options(simulation), **variables)
    again = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    totals = json.loads(again.stdout)
    assert totals["records"] == sum(len(records) for records in true_records(simulation).values())
    assert totals["records_per_second"] == 0, "nothing was written twice"
