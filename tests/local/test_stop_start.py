"""`sluice stop FLOW` and `sluice start FLOW` beside a running `sluice up`, and its restart of a frozen flow. Real processes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from control.process_status import Process, Registry, check_process, registered
from local.children.stop_requests import StopRequests
from tests.support.flow_process import is_running
from tests.support.whole_mirror import Mirror, mirrors, wait_for

HEALTHZ_SECONDS = 180.0  # six periods of ten seconds, the time to drain, and a start
START_SECONDS = 60.0
LIVE_SECONDS = 10.0  # a period: by then it has answered a probe, after which six failures are enough


@pytest.fixture
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    with mirrors(tmp_path_factory.mktemp("up")) as factory:
        yield factory(None)


def pids(folder: Path) -> dict[str, int]:
    found = registered(folder)
    return {process.name: process.pid for process in found.processes} if found else {}


def ready(folder: Path, name: str, other_than: int) -> bool:
    found = registered(folder)
    process = next((one for one in found.processes if one.name == name), None) if found else None
    return process is not None and process.pid not in (0, other_than) and check_process(process).ready


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_a_flow_is_stopped_and_started_and_a_frozen_one_is_restarted(mirror: Mirror) -> None:
    """G1: the others go on while one is stopped, and nobody has to notice that one hangs."""
    mirror.up("--simulate", "--workers", "2")
    folder = mirror.data_dir / "simulated"
    wait_for(lambda: mirror.alive() and registered(folder), 120, mirror.last_lines)
    for name in ("index-1", "firehose"):
        wait_for(lambda name=name: ready(folder, name, 0), START_SECONDS, mirror.last_lines)
    first = pids(folder)

    ended = mirror.cli("stop", "index")
    assert (ended.returncode, ended.stdout) == (0, "stopped index-1 index-2\n"), ended.stderr
    assert not any(is_running(first[name]) for name in ("index-1", "index-2"))
    page = mirror.status()
    states = {process["name"]: process["state"] for process in page["processes"]}
    assert (states["index-1"], states["index-2"]) == ("stopped", "stopped")
    assert any(problem["what"] == "stopped: index-1, by an operator" for problem in page["attention"])
    assert mirror.cli("stop", "index").returncode == 0, "it is stopped: nothing to do"

    ended = mirror.cli("start", "index-2")
    assert (ended.returncode, ended.stdout) == (0, "started index-2\n"), ended.stderr
    wait_for(lambda: ready(folder, "index-2", first["index-2"]), START_SECONDS, mirror.last_lines)
    assert pids(folder)["index-1"] == 0
    assert mirror.cli("start", "index").returncode == 0
    wait_for(lambda: ready(folder, "index-1", first["index-1"]), START_SECONDS, mirror.last_lines)

    time.sleep(LIVE_SECONDS)
    os.kill(first["firehose"], signal.SIGSTOP)
    wait_for(lambda: ready(folder, "firehose", first["firehose"]), HEALTHZ_SECONDS, mirror.last_lines)
    said = (mirror.folder / "up.err").read_text()
    assert "firehose: /healthz failed 6 times in a row" in said
    changed = {name for name, pid in pids(folder).items() if pid != first[name]}
    assert changed == {"index-1", "index-2", "firehose"}, "no other was restarted"
    assert mirror.interrupt() == 0


def refused(*arguments: str) -> str:
    ended = CliRunner().invoke(app, [*arguments], prog_name="sluice")
    assert ended.exit_code == 2, ended.output
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def registry(folder: Path, *processes: Process) -> None:
    names = [process.name for process in processes]
    Registry(os.getpid(), "127.0.0.1:1", "", "", 1, 1, list(processes), flows=names).write(folder)


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no `sluice up` runs in" in refused("stop", "index", "--data-dir", str(tmp_path))
    registry(tmp_path, Process("index-1", "index", os.getpid(), 0), Process("control", "control", os.getpid(), 0))
    assert "no process 'kafka' runs here; choose one of index, index-1, control" in refused(
        "stop", "kafka", "--data-dir", str(tmp_path)
    )
    monkeypatch.setattr("local.children.stop_requests.CHANGE_SECONDS", 0.2)
    line = refused("stop", "index", "--data-dir", str(tmp_path))
    assert f"index-1 did not stop within 0 s; see the log in {tmp_path / 'logs'}" in line
    assert StopRequests(tmp_path).names() == {"index-1"}
    (tmp_path / "stopped" / "index-1").unlink()
    (tmp_path / "stopped").rmdir()
    (tmp_path / "stopped").touch()
    assert "cannot be written" in refused("stop", "index", "--data-dir", str(tmp_path))
