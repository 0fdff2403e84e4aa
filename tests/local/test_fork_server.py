"""Forked processes are as real as started ones, and outlive the server that forked them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.forks import forked_process
from local.forks.forked_process import Forked, ForkServer
from tests.support.flow_process import is_running, suspend, wait_until

SECONDS = 60.0
SLEEP = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    made = ForkServer(["json", "no.such.module"])
    yield made
    made.close()


class Job:
    """Code in a forked process, with its output in a file."""

    def __init__(self, server: ForkServer, folder: Path, code: str, *words: str, **env: str) -> None:
        self.file = folder / "out"
        argv = [sys.executable, "-c", code, *words]
        with self.file.open("wb") as out:
            self.process: Forked = server.spawn(
                argv, env=env, stdout=out.fileno(), stderr=out.fileno(), title=f"job {words}", module="json"
            )

    def result(self) -> tuple[int, str]:
        return self.process.wait(SECONDS), self.file.read_text()


REPORT = """
import json, os, sys, threading
facts = {"pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "env": dict(os.environ), "argv": sys.argv,
         "threads": threading.active_count(), "files": len(os.listdir("/proc/self/fd")), "input": sys.stdin.read(),
         "title": open("/proc/self/cmdline").read().rstrip("\\0")}
print(json.dumps(facts))
"""


def test_a_forked_process_has_its_own_of_everything(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_OURS", "1")
    job = Job(server, tmp_path, REPORT, "word", OWN="yes")
    code, text = job.result()
    assert code == 0, text
    facts = json.loads(text)
    assert facts["pid"] == facts["session"] == job.process.pid
    assert facts["parent"] == os.getpid(), "its parent is we, not the server"
    assert facts["env"] == {"OWN": "yes"}
    assert facts["argv"] == ["-c", "word"]
    assert facts["threads"] == 1
    assert facts["files"] == 4, "the three streams, and the listing itself"
    assert facts["input"] == ""
    assert facts["title"].startswith("job")


@pytest.mark.parametrize(
    ("code", "ended", "text"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('why')", 1, "why\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.abort()", -signal.SIGABRT, ""),
        ("import atexit; atexit.register(print, 'last'); print('first')", 0, "first\nlast\n"),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('done'))).start()", 0, "done\n"),
    ],
)  # fmt: skip
def test_exit_codes_and_last_output(server: ForkServer, tmp_path: Path, code: str, ended: int, text: str) -> None:
    assert Job(server, tmp_path, code).result()[0] == ended
    assert text in (tmp_path / "out").read_text()


def test_signals_reach_the_process_and_its_end_is_seen_once(server: ForkServer, tmp_path: Path) -> None:
    process = Job(server, tmp_path, SLEEP).process
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    process.terminate()
    assert process.wait(SECONDS) == -signal.SIGTERM == process.poll()
    process.kill()  # no error, and no signal to whoever has the pid now
    interrupted = Job(server, tmp_path, f"try:\n {SLEEP}\nexcept KeyboardInterrupt:\n raise SystemExit(7)").process
    wait_until(lambda: "/out" in os.readlink(f"/proc/{interrupted.pid}/fd/1"), SECONDS)
    wait_until(lambda: interrupted.send_signal(signal.SIGINT) or interrupted.poll() is not None, SECONDS)
    assert interrupted.returncode in (7, 1, -signal.SIGINT)  # in its code, or before it


def test_a_killed_server_is_started_again_and_its_processes_go_on(server: ForkServer, tmp_path: Path) -> None:
    before = Job(server, tmp_path, SLEEP).process
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not is_running(killed), SECONDS)
    after = Job(server, tmp_path, "raise SystemExit(5)").process
    assert after.wait(SECONDS) == 5
    assert server.pid != killed
    assert before.poll() is None
    before.kill()
    assert before.wait(SECONDS) == -signal.SIGKILL


def test_several_threads_start_processes(server: ForkServer, tmp_path: Path) -> None:
    codes: list[int] = []

    def one(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        codes.append(Job(server, folder, f"raise SystemExit({number})").process.wait(SECONDS))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(8))


OWNER = f"""
import os, signal, sys, time
from local.forks import forked_process
from local.forks.forked_process import ForkServer
forks = ForkServer(["json"])
forks.start(fork=True)
first = forks.pid
job = forks.spawn([sys.executable, "-c", {SLEEP!r}], env={{}}, stdout=1, stderr=2, title="job")
print(first, job.pid, flush=True)
time.sleep(600)
"""


def test_a_server_that_is_a_fork_ends_with_its_owner(tmp_path: Path) -> None:
    """kill -9 of the owner ends the server; its processes end by `die_with`, which is their own."""
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server, job = (int(word) for word in owner.stdout.readline().split())
        assert is_running(server)
        owner.kill()
        owner.wait()
        try:
            wait_until(lambda: not is_running(server), SECONDS)
        finally:
            os.kill(job, signal.SIGKILL)


def test_a_server_that_hangs_is_replaced(server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is suspended; the next start waits ANSWER_SECONDS for it, and not for ever."""
    monkeypatch.setattr(forked_process, "ANSWER_SECONDS", 2.0)
    server.start()
    hanging = server.pid
    suspend(hanging)
    monkeypatch.setattr(forked_process, "ANSWER_SECONDS", SECONDS)
    began = time.monotonic()
    assert Job(server, tmp_path, "raise SystemExit(5)").result()[0] == 5
    assert time.monotonic() - began > 1.9
    assert server.pid != hanging
    assert not is_running(hanging)
