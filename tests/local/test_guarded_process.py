"""The guard: a server dies with its owner, its folder is its own, its port is kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from local.embedded.guarded_process import (
    PORT_RANGE,
    DataFolderBusy,
    GuardedProcess,
    free_port,
    lock_folder,
    port_is_free,
    remembered_ports,
    reserve_port,
)

# the owner: starts the server named in argv, prints its pid when it is ready or, with "early", when it exists; waits to be killed
OWNER = """
import sys, pathlib, threading, time
from local.embedded.embedded_log import EmbeddedLog
from local.embedded.embedded_database import EmbeddedDatabase
server = {"log": EmbeddedLog, "database": EmbeddedDatabase}[sys.argv[1]](pathlib.Path(sys.argv[2]))
starter = threading.Thread(target=server.start)  # a thread that ends must not take the server along
starter.start()
if sys.argv[3] != "early":
    starter.join()
while server.pid is None:
    time.sleep(0.01)
print(server.pid, flush=True)
sys.stdin.read()
"""


WAIT_SECONDS = 120.0


def poll_until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it went between the two questions
        return False


Owned = Callable[..., tuple[subprocess.Popen[str], list[psutil.Process]]]


@pytest.fixture
def owned() -> Iterator[Owned]:
    """Starts an owner of a server; returns it with every process below it: guard, server, the server's children."""
    owners: list[subprocess.Popen[str]] = []
    # not pytest's own folder: another pytest that starts closes that to the user as whom PostgreSQL runs
    folder = tempfile.TemporaryDirectory(prefix="sluice-test-", ignore_cleanup_errors=True)

    def start(kind: str, when: str = "ready") -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, kind, str(Path(folder.name) / kind), when],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        owners.append(owner)
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        family = psutil.Process(owner.pid).children(recursive=True)
        assert server in [process.pid for process in family]
        assert len(family) >= 2
        # not all of them live on: a session of PostgreSQL that just ended is among them too
        assert alive(psutil.Process(server))
        return owner, family

    yield start
    for owner in owners:
        owner.kill()
        owner.wait()
    folder.cleanup()


@pytest.mark.parametrize("kind", ["log", "database"])
def test_nothing_is_left_when_the_owner_is_killed(kind: str, owned: Owned) -> None:
    owner, family = owned(kind)
    owner.kill()
    owner.wait()
    poll_until(lambda: not any(alive(process) for process in family))


@pytest.mark.parametrize("kind", ["log", "database"])
def test_nothing_is_left_when_the_guard_is_killed(kind: str, owned: Owned) -> None:
    owner, family = owned(kind, "early" if kind == "log" else "ready")
    guard = psutil.Process(owner.pid).children()[0]
    guard.kill()
    poll_until(lambda: not any(alive(process) for process in family))
    assert owner.poll() is None


def test_nothing_is_left_when_the_owner_simply_ends_and_a_ctrl_c_in_its_terminal_does_not_reach_the_server(
    owned: Owned,
) -> None:
    owner, family = owned("database")
    living = [process for process in family if alive(process)]
    assert len(living) >= 2
    for process in living:
        with suppress(ProcessLookupError):  # it ended meanwhile
            assert os.getpgid(process.pid) != os.getpgid(owner.pid)
            assert os.getsid(process.pid) != os.getsid(owner.pid)
    assert owner.stdin is not None
    owner.stdin.close()
    assert owner.wait(WAIT_SECONDS) == 0
    poll_until(lambda: not any(alive(process) for process in family))


def spawn(folder: Path, script: str, **options: float) -> GuardedProcess:
    return GuardedProcess.spawn(
        [sys.executable, "-u", "-c", script],
        log_path=folder / "server.log",
        lock=lock_folder(folder, WAIT_SECONDS),
        cwd=folder,
        env=dict(os.environ),
        **options,
    )


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)"


def test_a_server_that_ignores_the_stop_is_killed(tmp_path: Path) -> None:
    server = spawn(tmp_path, STUBBORN, stop_seconds=0.3)
    poll_until(lambda: "ready" in (tmp_path / "server.log").read_text())
    began = time.monotonic()
    server.stop()
    assert not server.running
    assert not psutil.pid_exists(server.pid)
    assert 0.3 <= time.monotonic() - began < WAIT_SECONDS  # it would have slept for ten minutes


def test_a_folder_has_one_server_and_the_next_waits_for_its_end(tmp_path: Path) -> None:
    server = spawn(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(DataFolderBusy):
        lock_folder(tmp_path, 0.1)
    server.kill()
    os.close(lock_folder(tmp_path, WAIT_SECONDS))


def test_a_program_that_does_not_exist_leaves_its_reason(tmp_path: Path) -> None:
    server = GuardedProcess.spawn(
        ["/nonexistent/server"],
        log_path=tmp_path / "log",
        lock=lock_folder(tmp_path, WAIT_SECONDS),
        cwd=tmp_path,
        env={},
    )
    assert server.wait(WAIT_SECONDS)
    assert "cannot start /nonexistent/server" in server.last_words()


def test_the_servers_end_is_noticed(tmp_path: Path) -> None:
    server = spawn(tmp_path, "import time; time.sleep(600)")
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait(WAIT_SECONDS)
    assert not server.running
    server.stop()  # and stopping it afterwards is harmless


def test_ports_are_kept_unless_somebody_took_them(tmp_path: Path) -> None:
    first = remembered_ports(tmp_path, ["a", "b"], {})
    assert remembered_ports(tmp_path, ["a", "b"], {}) == first
    assert all(PORT_RANGE[0] <= port < PORT_RANGE[1] for port in first.values())
    with socket.create_server(("127.0.0.1", first["a"])):  # with SO_REUSEADDR, as every server
        second = remembered_ports(tmp_path, ["a", "b"], {})
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]
    wanted = free_port()
    assert remembered_ports(tmp_path, ["a", "b"], {"a": wanted}) == {"a": wanted, "b": first["b"]}


def test_a_chosen_port_is_reserved_until_its_server_listens() -> None:
    """Servers take seconds to bind theirs; two that were given the same would be one too many."""
    port = free_port()
    assert not reserve_port(port), "another process would have chosen it too"
    assert port_is_free(port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
        assert not reserve_port(port)
