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

import psutil
import psycopg
import pytest

from control.process_status import Registry, check_process, registered
from tests.support.flow_process import is_running
from tests.support.simulation import Simulation
from tests.support.whole_mirror import Mirror, mirrors, wait_for

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


@pytest.fixture
def mirror(home: Path) -> Iterator[Mirror]:
    """A mirror of no network: `up --simulate` brings its own."""
    with mirrors(home) as factory:
        yield factory(None)


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
    told = "\n".join(line for line in ended.stderr.splitlines() if not line.startswith("metrics "))
    assert "index-2" not in told.replace("index-2: state", ""), "nothing to say of a worker that did its work"
    assert f"sluice psql --data-dir {home}" in told
    assert "\nkcat     kcat -b 127.0.0.1:" in told
    assert "\npage     http://127.0.0.1:" in told
    assert (home / "simulated" / "logs" / "index-2.log").exists()
    assert not (home / "simulated" / "processes.json").exists()


def test_kills_restarts_and_a_clean_end(home: Path, simulator: Callable[..., Simulation]) -> None:
    """G1: kill -9 of a flow, of the broker and of the database, and at last of `up` itself: nothing is left running, and the
    next `up` goes on with the same data, ends with 0 and writes nothing twice. A second `up` beside the first is refused."""
    simulation = simulator(repos=60, records_per_repo=15, writer_rate=20, seed=5)
    variables = {"SLUICE_ALLOW_PRIVATE_HOSTS": "true"}
    with running(home, *options(simulation), **variables) as up:
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
        with psycopg.connect(changed.database) as db:  # those of accounts that are inactive by now, too
            ((stored,),) = db.execute("select count(*) from sluice.record").fetchall()
        text = (home / "up.log").read_text()
        for name in ("index", "postgres", "kafka"):
            assert f" {name}: ended" in text, "the kill was noticed"
        status_is_whole(home, simulation, up)

        argv, env = command("up", "--data-dir", str(home), *options(simulation), **variables)
        second = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=STOP_SECONDS, check=False)
        assert second.returncode == 2
        assert "runs in" in second.stderr

        up.kill()
        up.wait()
        until(lambda: gone(pids(first) + pids(changed)))
    argv, env = command("up", "--data-dir", str(home), "--until-synced", *options(simulation), **variables)
    again = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert not (home / "processes.json").exists()
    totals = json.loads(again.stdout)
    assert totals["records"] == stored
    assert totals["records_per_second"] == 0, "nothing was written twice"


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


def status_is_whole(home: Path, simulation: Simulation, up: subprocess.Popen[str]) -> None:
    """`sluice status` and `sluice cursors` of a mirror at rest."""
    page = until(lambda: at_rest(home), up)
    assert page["repos"]["sync"] == len(true_records(simulation))
    assert {process["kind"] for process in page["processes"]} >= {"index", "backfill", "kafka", "postgres"}
    assert page["lag"]["index/firehose_backfill"] == 0
    assert set(page["addresses"]) == {"psql", "kcat", "page", "metrics", "stream"}
    assert not any(standing["past_end"] for standing in page["partition_lags"])
    argv, env = command("cursors", "list", "--data-dir", str(home))
    assert simulation.relays[0] in subprocess.run(argv, env=env, capture_output=True, check=True, text=True).stdout


def test_ctrl_c_ends_everything(mirror: Mirror) -> None:
    """`sluice up --simulate` shows what it does; a killed index starts again; Ctrl-C ends it with exit 0, and nothing of it
    is left."""
    one = mirror
    one.up("--simulate")
    folder, found = one.data_dir / "simulated", simulated(one, 40)
    page = one.status()
    assert page["repos"]["sync"] > 20  # some may be fetched again
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
    index = next(process.pid for process in found.processes if process.name == "index")
    os.kill(index, signal.SIGKILL)
    wait_for(lambda: one.alive() and _restarted(folder, index), WAIT_SECONDS, one.last_lines)
    assert one.interrupt() == 0
    assert not (folder / "processes.json").exists()
    assert_gone(one, [*running, *(process.pid for process in tree)], ports)


def test_a_killed_up_leaves_nothing(mirror: Mirror) -> None:
    """SIGKILL of `sluice up`: its flows, servers and simulated network end with it."""
    one = mirror
    one.up("--simulate")
    found = simulated(one, 0)
    tree = psutil.Process(found.up).children(recursive=True)
    ports = [process.port for process in found.processes if process.port]
    os.kill(found.up, signal.SIGKILL)
    assert one.leader is not None
    assert one.leader.wait(120) == -signal.SIGKILL
    assert_gone(one, [process.pid for process in tree], ports)


def simulated(one: Mirror, repos: int) -> Any:
    """The registry of `up --simulate`, once more than so many of its 300 repos are in sync."""
    folder = one.data_dir / "simulated"
    found = wait_for(lambda: one.alive() and registered(folder), 120, one.last_lines)

    def synced() -> bool:
        one.alive()
        try:
            with psycopg.connect(found.database) as db:
                row = db.execute("select count(*) from sluice.repo where phase = 'sync'").fetchone()
        except psycopg.errors.UndefinedTable:
            return False
        return row is not None and row[0] > repos

    wait_for(synced, 120, one.last_lines)
    again = registered(folder)
    assert again is not None
    return again


def assert_gone(one: Mirror, pids: list[int], ports: list[int]) -> None:
    """Nothing of it runs or listens."""

    def left() -> list[str]:
        alive = [f"pid {pid}" for pid in pids if is_running(pid)]
        return alive + one.left_behind()

    wait_for(lambda: not left(), 120, lambda: f"left: {left()}")
    listening = {one.laddr.port for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    assert not listening & set(ports)
