"""Control's steps beside each other: one that fails or waits holds up no other, and has new clients after a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from connectors.kafka.log import LogUnavailable
from control.tasks import step_thread as steps
from control.tasks.step_thread import Close, ControlStep, StepResult, StepThread, Work
from tests.support.flow_process import wait_until

Run = Callable[..., StepThread]


@pytest.fixture
def leads() -> threading.Event:
    flag = threading.Event()
    flag.set()
    return flag


@pytest.fixture
def run(leads: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(steps, "WAIT_FIRST_SECONDS", 0.001)
    started: list[StepThread] = []

    def start(name: str, work: Work, close: Close = lambda: None, **more: object) -> StepThread:
        thread = StepThread(ControlStep(name, lambda: (work, close), 0.001, **more), leads.is_set)  # type: ignore[arg-type]
        started.append(thread)
        thread.worker.start()
        return thread

    yield start
    for one in started:
        one.worker.stop(10)


def test_one_that_fails_or_waits_holds_up_no_other(run: Run) -> None:
    """H1: the removal of obsolete rows failed for 19 minutes, and dead letters and lag behind it in the pass never came."""
    release, calls = threading.Event(), {"fails": 0, "works": 0}

    def fails() -> StepResult:
        calls["fails"] += 1
        raise LogUnavailable("list_topics: timed out")

    def waits() -> StepResult:
        release.wait(30)
        return StepResult()

    def works() -> StepResult:
        calls["works"] += 1
        return StepResult(queued=1)

    failing, waiting, working = run("obsolete rows", fails), run("lag", waits), run("letters", works)
    wait_until(lambda: calls["fails"] > 3 and calls["works"] > 11)  # the last one may still be under way
    assert failing.problem == "list_topics: timed out"
    assert waiting.problem == working.problem == ""
    assert working.take().queued > 10
    release.set()
    for one in (failing, waiting, working):
        one.worker.check()


def test_failed_clients_are_rebuilt(leads: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: an old client failed each time although the broker answered."""
    monkeypatch.setattr(steps, "WAIT_FIRST_SECONDS", 0.001)
    built: list[int] = []
    closed: list[int] = []
    worked = threading.Event()

    def build() -> tuple[Work, Close]:
        number = len(built)
        built.append(number)

        def work() -> StepResult:
            if number < 2:
                raise LogUnavailable("this client is broken")
            worked.set()
            return StepResult()

        return work, lambda: closed.append(number)

    thread = StepThread(ControlStep("lag", build, 0.001), leads.is_set)
    thread.worker.start()
    assert worked.wait(30)
    wait_until(lambda: thread.problem == "")
    assert built == [0, 1, 2]
    assert closed == [0, 1]
    thread.worker.stop(10)
    assert closed == [0, 1, 2]


def test_a_lost_connection_is_tried_again(run: Run) -> None:
    """A database opens its connection anew by itself."""
    calls: list[int] = []

    def work() -> StepResult:
        calls.append(1)
        if len(calls) == 1:
            raise psycopg.OperationalError("the connection is lost")
        return StepResult(reaped=1)

    thread = run("recover", work)
    wait_until(lambda: thread.take().reaped)
    thread.worker.check()


def test_any_other_error_ends_the_process(run: Run) -> None:
    """B8: it is raised where the process ends of it."""

    def work() -> StepResult:
        raise ValueError("impossible")

    thread = run("recover", work)

    def raised() -> bool:
        try:
            thread.worker.check()
        except ValueError:
            return True
        return False

    wait_until(raised)


def test_only_the_leader_works(run: Run, leads: threading.Event) -> None:
    leads.clear()
    calls: list[str] = []

    def noting(name: str) -> Work:
        def work() -> StepResult:
            calls.append(name)
            return StepResult()

        return work

    run("queue", noting("queue"))
    run("letters", noting("letters"), leader_only=False)
    wait_until(lambda: len(calls) > 5)
    assert set(calls) == {"letters"}
    leads.set()
    wait_until(lambda: "queue" in calls)


def test_steps_add_up() -> None:
    assert StepResult(queued=1, reaped=2) + StepResult(queued=3, lost_events=4) == StepResult(4, 0, 2, 4)
    assert StepResult().idle
    assert not StepResult(requeued=1).idle
