"""A process that hangs ends by itself and says where; one that is told to stop ends, whatever its threads do."""

from __future__ import annotations

import json
import signal
import subprocess
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.runtime import watchdog
from tests.support import zygote
from tests.support.flow_process import suspend, wait_until

PRELUDE = """
import ctypes, sys, threading, time
from connectors.runtime import watchdog
from connectors.runtime.health import Health, serve_health
from connectors.runtime.logs import log_to_stderr
from connectors.runtime.stop import STOP, stop_on_signals
log_to_stderr("json")
stop_on_signals()
health = Health("probe")
dog = watchdog.Watchdog(health, STOP, float(sys.argv[1]), float(sys.argv[2]), signals=watchdog.Signals())
dog.start()
print(serve_health(health, "127.0.0.1", 0), flush=True)

def hang(library):
    mutex = ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # never returns, and no signal interrupts it
"""
IN_C = "hang(ctypes.CDLL(None))"
WITH_THE_INTERPRETER = "hang(ctypes.PyDLL(None))"


class Probe:
    """A process with a watchdog whose main thread runs this code. `stop_seconds`: its time to end after SIGTERM."""

    def __init__(self, folder: Path, code: str, seconds: float, stop_seconds: float) -> None:
        self.errors = folder / "errors"
        program = PRELUDE + textwrap.dedent(code)
        with self.errors.open("wb") as errors:
            job = ["code", program, str(seconds), str(stop_seconds)]
            self.process = zygote.spawn(job, stdout=subprocess.PIPE, stderr=errors.fileno())
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"

    def healthz(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.url + "/healthz", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as err:
            return err.code, json.load(err)
        except OSError:
            return 0, {}

    def said(self) -> list[dict[str, Any]]:
        lines = self.errors.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[Callable[..., Probe]]:
    made: list[Probe] = []

    def make(code: str, seconds: float = 1.0, stop_seconds: float = 1.0) -> Probe:
        made.append(Probe(tmp_path, code, seconds, stop_seconds))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.wait()
        assert one.process.stdout is not None
        one.process.stdout.close()


def test_a_thread_that_hangs_in_c_is_named_and_ends_the_process(probe: Callable[..., Probe]) -> None:
    """H1: /healthz 503, the stacks of all threads, exit 71."""
    # shown for longer than a slow machine takes to look
    hanging = probe(f"watchdog.SHOWN_SECONDS = 10.0\nwith watchdog.watched('the flow'):\n    {IN_C}")
    _status, page = wait_until(lambda: (found := hanging.healthz())[0] == 503 and found)
    assert page["state"] == "hung"
    assert not page["ready"]
    assert "no progress for 1 s: the flow at " in page["why"]
    assert hanging.process.wait(30) == watchdog.EXIT_HUNG
    (last,) = [line for line in hanging.said() if line["level"] == "CRITICAL"]
    assert "(hang)" in last["reason"]
    assert "most recent call first" in hanging.errors.read_text()


def test_a_blocked_event_loop_ends_the_process(probe: Callable[..., Probe]) -> None:
    """H1: a loop in a thread beside a flow that goes on."""
    code = """
    import asyncio
    from connectors.runtime.background_loop import Background
    async def main():
        await asyncio.sleep(0.2)
        time.sleep(60)
    Background("pages", main).start()
    with watchdog.watched("the flow"):
        while True:
            watchdog.wait(threading.Event(), 0.1)
    """
    hanging = probe(code)
    assert hanging.process.wait(30) == watchdog.EXIT_HUNG
    (last,) = [line for line in hanging.said() if line["level"] == "CRITICAL"]
    assert "pages at" in last["reason"]
    assert "the flow" not in last["reason"]


def test_code_that_keeps_the_interpreter_ends_the_process_too(probe: Callable[..., Probe]) -> None:
    """H1: no Python thread runs any more, so the timer of faulthandler ends it."""
    code = f"watchdog.INTERPRETER_SECONDS = 0.5\ntime.sleep(6)\n{WITH_THE_INTERPRETER}"
    hanging = probe(code)
    assert hanging.process.wait(60) == 1
    assert "Timeout (0:00:0" in hanging.errors.read_text()


def test_sigterm_ends_a_process_whose_main_thread_hangs_in_c(probe: Callable[..., Probe]) -> None:
    """H1: Python's own handler never runs there; the exit code says that it had to be forced."""
    hanging = probe(IN_C, seconds=600.0)
    wait_until(lambda: hanging.healthz()[0] == 200)
    hanging.process.send_signal(signal.SIGTERM)
    assert hanging.process.wait(20) == watchdog.EXIT_STUCK
    (last,) = [line for line in hanging.said() if line["level"] == "CRITICAL"]
    assert "did not end within 1 s" in last["reason"]


def test_one_sigterm_is_not_taken_for_two(probe: Callable[..., Probe]) -> None:
    """The watchdog and the handler both hear of a signal; the process drains and ends with 0."""
    code = """
    while not STOP.is_set():
        STOP.wait(0.05)
    time.sleep(0.5)
    """
    obedient = probe(code, seconds=600.0, stop_seconds=60.0)
    wait_until(lambda: obedient.healthz()[0] == 200)
    obedient.process.send_signal(signal.SIGTERM)
    assert obedient.process.wait(20) == 0


def test_a_process_that_was_suspended_continues(probe: Callable[..., Probe]) -> None:
    """A machine that sleeps, or SIGSTOP: nobody could mark a turn, so nobody hangs."""
    code = """
    with watchdog.watched("the flow"):
        while not STOP.is_set():
            watchdog.mark()
            for _ in range(10):
                time.sleep(0.12)  # so that the next mark comes well after the end of the suspension
    """
    frozen = probe(code, seconds=4.0, stop_seconds=60.0)
    wait_until(lambda: frozen.healthz()[0] == 200)
    suspend(frozen.process.pid)
    began = time.monotonic()
    assert not threading.Event().wait(5.0)  # longer than the watchdog's limit
    frozen.process.send_signal(signal.SIGCONT)
    assert time.monotonic() - began > 4.5
    wait_until(lambda: frozen.healthz()[0] == 200)
    with pytest.raises(subprocess.TimeoutExpired):
        frozen.process.wait(4.5)
    frozen.process.send_signal(signal.SIGTERM)
    assert frozen.process.wait(60) == 0


def test_an_interpreter_that_does_not_end_is_ended(probe: Callable[..., Probe]) -> None:
    """H1: a library's destructor that waits, after everything was drained."""
    code = f"import atexit\natexit.register(lambda: {IN_C})\ndog.ending()"
    hanging = probe(code, seconds=600.0)
    assert hanging.process.wait(20) == 1
    assert "Timeout (0:00:01)" in hanging.errors.read_text()


def test_a_thread_that_waits_on_purpose_sleeps_until_the_end_of_its_wait() -> None:
    """S5, H1: it does not wake to say that it lives; after its wait it is late as any other."""
    waits: list[float] = []

    class Wait(threading.Event):
        """Ends at once."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            watchdog.mark_all()  # a suspension does not end the wait
            assert turn not in watchdog.late(-15.0)
            return False

    with watchdog.watched("waits") as turn:
        assert not watchdog.wait(Wait(), 30.0)
        assert turn in watchdog.late(-1.0)
    assert waits == [30.0]


def test_marks_are_of_the_thread_that_makes_them() -> None:
    with watchdog.watched("outer") as outer:
        outer.marked_at -= 100
        assert outer in watchdog.late(50)
        with watchdog.watched("inner") as inner:
            inner.marked_at -= 100
            watchdog.mark()
            assert inner not in watchdog.late(50)
        assert outer not in watchdog.late(50)  # the inner block was its progress
        with watchdog.watched_task("a call in another thread") as chore:
            chore.marked_at -= 100
            watchdog.mark()
            assert chore in watchdog.late(50)
    assert {turn.name for turn in watchdog.late(0)}.isdisjoint({"outer", "inner", "a call in another thread"})
