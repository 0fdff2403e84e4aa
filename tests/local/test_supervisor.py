"""The supervisor with real children: it starts them again, drains them in order, and takes them along when it dies."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.children.supervisor import (
    Command,
    LogFile,
    Supervisor,
    ending,
    restart_seconds,
)
from local.forks.forked_process import ForkServer

WAIT_SECONDS = 60.0
OBEDIENT = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('up', flush=True)\ntime.sleep(600)"
DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"


class Heard:
    """What the supervisor said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def __call__(self, who: str, what: str) -> None:
        self.said.append((who, what))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def supervisor(tmp_path: Path, heard: Heard) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path / "logs", heard)
    yield made
    made.kill()


def python(name: str, code: str, kind: str = "") -> Command:
    return Command(name, kind or name, (sys.executable, "-c", textwrap.dedent(code)), {})


def until(condition: Callable[[], object], tick: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not within time"
        tick()
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_back_off_grows_to_half_a_minute() -> None:
    assert [restart_seconds(ends) for ends in (1, 2, 3, 7, 100)] == [0.5, 1.0, 2.0, 30.0, 30.0]


def test_exit_codes_and_signals_are_described() -> None:
    assert ending(1) == "ended with exit code 1"
    assert ending(-9) == "ended by SIGKILL"


def test_a_killed_child_is_started_again_and_named(supervisor: Supervisor, heard: Heard, tmp_path: Path) -> None:
    """G1, B8: a process that dies comes back, and an operator reads that it died."""
    child = supervisor.add(python("index", OBEDIENT))
    until(lambda: "up" in (tmp_path / "logs" / "index.log").read_text())
    first = child.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: child.running and child.pid != first, supervisor.tick)
    assert child.restarts == supervisor.parts[0].restarts == 1
    assert heard.said[0][0] == "index"
    assert "ended by SIGKILL; restarting in 0.5 s" in heard.said[0][1]


def test_children_of_a_fork_server_come_back_also_when_it_was_killed(tmp_path: Path, heard: Heard) -> None:
    forks = ForkServer(["json"])
    forks.start()
    supervisor = Supervisor(tmp_path / "logs", heard, forks)
    try:
        child = supervisor.add(Command("index", "index", (sys.executable, "-c", OBEDIENT), {}, module="json"))
        until(lambda: "up" in (tmp_path / "logs" / "index.log").read_text())
        first = child.pid
        os.kill(forks.pid, signal.SIGKILL)
        os.kill(first, signal.SIGKILL)
        until(lambda: child.running and child.pid != first, supervisor.tick)
        assert heard.said[0][1].startswith("ended by SIGKILL; restarting")
        until(lambda: (tmp_path / "logs" / "index.log").read_text().count("up") == 2)
        assert supervisor.drain(["index"])
    finally:
        supervisor.kill()
        forks.close()


def test_a_child_starts_without_a_fork_server_that_fails(tmp_path: Path, heard: Heard) -> None:
    """Its interpreter ends at once, again and again: the mirror must not end with it."""
    forks = ForkServer(["no.such.module"])
    forks.start = lambda **_: None  # type: ignore[method-assign]  # each new server is dead
    supervisor = Supervisor(tmp_path / "logs", heard, forks)
    try:
        child = supervisor.add(Command("index", "index", (sys.executable, "-c", OBEDIENT), {}, module="json"))
        until(lambda: "up" in (tmp_path / "logs" / "index.log").read_text())
        assert child.running
        assert heard.said[0][1].startswith("the fork server failed")
        assert supervisor.drain(["index"])
    finally:
        supervisor.kill()


def test_a_child_that_keeps_ending_is_started_ever_later(supervisor: Supervisor, heard: Heard) -> None:
    """G5: no tight loop of restarts."""
    supervisor.add(python("labels", "raise SystemExit('no such labeler')"))
    until(lambda: len(heard.said) == 3, supervisor.tick)
    waits = [what.partition("restarting in ")[2].partition(" s")[0] for _, what in heard.said]
    assert [round(float(wait), 1) for wait in waits] == [0.5, 1.0, 2.0]
    assert all(what.endswith("last words: no such labeler") for _, what in heard.said)


def test_warnings_of_children_are_shown_and_the_rest_is_kept(
    supervisor: Supervisor, heard: Heard, tmp_path: Path
) -> None:
    code = """
    import json, time
    for level, event in (("INFO", "quiet"), ("WARNING", "host paused")):
        print(json.dumps({"level": level, "event": event, "host": "pds.test"}), flush=True)
    time.sleep(600)
    """
    supervisor.add(python("backfill", code))
    until(lambda: heard.said)
    assert heard.said == [("backfill", "host paused host=pds.test")]
    assert "quiet" in (tmp_path / "logs" / "backfill.log").read_text()


def test_logs_are_bounded(tmp_path: Path) -> None:
    """G6: two files of the limit at most, whatever a child prints."""
    log = LogFile(tmp_path / "x.log", limit=1000)
    for number in range(500):
        log.write(f"line {number:04}\n".encode())
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["x.1.log", "x.log"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 1010
    assert (tmp_path / "x.log").read_text().endswith("line 0499\n") or (tmp_path / "x.1.log").read_text().endswith(
        "line 0499\n"
    )


def test_only_the_given_kinds_of_processes_are_drained(supervisor: Supervisor, tmp_path: Path) -> None:
    first, second = supervisor.add(python("firehose", OBEDIENT)), supervisor.add(python("index-1", OBEDIENT, "index"))
    until(lambda: all("up" in (tmp_path / "logs" / f"{name}.log").read_text() for name in ("firehose", "index-1")))
    assert supervisor.drain(["firehose"])
    assert not first.running
    assert second.running
    assert supervisor.drain(["index"])
    assert not second.running
    assert supervisor.processes == []


def test_a_child_that_does_not_stop_is_killed_and_named(supervisor: Supervisor, heard: Heard, tmp_path: Path) -> None:
    child = supervisor.add(python("deaf", DEAF))
    until(lambda: "up" in (tmp_path / "logs" / "deaf.log").read_text())
    assert not supervisor.drain(["deaf"], seconds=0.3)
    assert not child.running
    assert heard.said[-1] == ("deaf", "did not stop within 0 s and was killed")


def test_children_keep_no_setting_of_the_supervisors_own_environment(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_HTTP_PORT", "1")
    code = "import os, time; print(sorted(n for n in os.environ if n.startswith('SLUICE_HTTP')), flush=True); time.sleep(600)"
    supervisor.add(python("probe", code))
    until(lambda: (tmp_path / "logs" / "probe.log").read_text() != "")
    assert (tmp_path / "logs" / "probe.log").read_text() == "[]\n"


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """kill -9 of `up` leaves nothing behind."""
    child = "import os, sys, time; from local.run import die_with; die_with(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)"
    parent = f"""
    import os, sys, time
    from pathlib import Path
    from local.children.supervisor import Command, Supervisor
    supervisor = Supervisor(Path({str(tmp_path)!r}), lambda *_: None)
    supervisor.add(Command("c", "c", (sys.executable, "-c", {child!r}, str(os.getpid())), {{}}))
    time.sleep(600)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)])
    log = tmp_path / "c.log"
    try:
        until(lambda: log.exists() and log.read_text().strip())
        pid = int(log.read_text())
        assert alive(pid)
    finally:
        process.kill()
        process.wait()
    until(lambda: not alive(pid))


def test_a_child_that_an_operator_stopped_stays_so_until_it_is_started(heard: Heard, tmp_path: Path) -> None:
    """Another child goes on. A start after a stop is no restart, and has no delay."""
    stopped: set[str] = set()
    supervisor = Supervisor(tmp_path / "logs", heard, stopped=lambda: stopped)
    try:
        child, other = supervisor.add(python("index", OBEDIENT)), supervisor.add(python("labels", OBEDIENT))
        until(lambda: "up" in (tmp_path / "logs" / "index.log").read_text())
        pids = child.pid, other.pid
        stopped.add("index")
        until(lambda: not child.running, supervisor.tick)
        until(lambda: len(heard.said) == 2, supervisor.tick)
        assert [what for _, what in heard.said] == ["stopping, as an operator asked", "ended with exit code 0; stopped"]
        end = time.monotonic() + 1.0
        until(lambda: time.monotonic() > end, supervisor.tick)
        assert [(one.name, one.pid) for one in supervisor.processes] == [("index", 0), ("labels", pids[1])]
        assert [part.stopped for part in supervisor.parts] == [True, False]
        stopped.clear()
        supervisor.tick()
        assert child.running, "at once"
        assert child.restarts == 0
        assert child.pid != pids[0]
        os.kill(child.pid, signal.SIGKILL)
        until(lambda: child.restarts == 1 and child.running, supervisor.tick)
    finally:
        supervisor.kill()


def test_a_stopped_child_that_does_not_drain_is_killed(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.children.supervisor.DRAIN_SECONDS", 0.3)
    supervisor = Supervisor(tmp_path / "logs", heard, stopped=lambda: {"index"})
    try:
        child = supervisor.add(python("index", DEAF))
        until(lambda: "up" in (tmp_path / "logs" / "index.log").read_text())
        until(lambda: child.exit_code is not None, supervisor.tick)
        assert heard.said[-1][1] == "ended by SIGKILL; stopped"
    finally:
        supervisor.kill()


def test_a_child_is_stopped_while_it_waits_for_its_restart(heard: Heard, tmp_path: Path) -> None:
    stopped: set[str] = set()
    supervisor = Supervisor(tmp_path / "logs", heard, stopped=lambda: stopped)
    try:
        child = supervisor.add(python("index", "raise SystemExit(3)"))
        until(lambda: child.restarts == 3, supervisor.tick)
        stopped.add("index")
        starts = child.pid
        end = time.monotonic() + child.restart_wait + 0.5
        until(lambda: time.monotonic() > end, supervisor.tick)
        assert child.pid == starts
        assert supervisor.processes[0].pid == 0
    finally:
        supervisor.kill()
