"""A worker thread: its errors reach its owner, it stops when it is asked to, and the watchdog sees it hang."""

from __future__ import annotations

import threading

import pytest

from connectors.runtime import watchdog
from connectors.runtime.stop import Stopping
from connectors.runtime.worker_thread import WorkerThread
from tests.support.flow_process import wait_until


def ended(worker: WorkerThread) -> WorkerThread:
    worker.start()
    wait_until(lambda: not worker.alive)
    return worker


def test_an_error_is_raised_in_the_owners_thread() -> None:
    """B8."""

    def run() -> None:
        raise ValueError("impossible")

    worker = ended(WorkerThread("fails", run))
    with pytest.raises(ValueError, match="impossible"):
        worker.check()


def test_stopping_is_no_error() -> None:
    def run() -> None:
        raise Stopping

    worker = ended(WorkerThread("stops", run))
    worker.check()
    assert worker.error is None


def test_stop_wakes_a_rest_and_waits_for_the_end() -> None:
    resting, rounds = threading.Event(), []

    def run() -> None:
        while not worker.stopping:
            rounds.append(1)
            resting.set()
            worker.wait(600)

    worker = WorkerThread("rests", run)
    worker.start()
    assert resting.wait(30)
    worker.stop(30)
    assert not worker.alive
    assert rounds == [1]


def test_stop_before_start_and_without_waiting() -> None:
    worker = WorkerThread("never starts", lambda: None)
    worker.stop(30)
    worker.check()


def test_the_watchdog_names_a_worker_that_hangs() -> None:
    hanging, release = threading.Event(), threading.Event()

    def run() -> None:
        hanging.set()
        release.wait(60)

    worker = WorkerThread("hangs", run)
    worker.start()
    assert hanging.wait(30)
    wait_until(lambda: "hangs" in [turn.name for turn in watchdog.late(0.05)])
    release.set()
    wait_until(lambda: not worker.alive)
    assert "hangs" not in [turn.name for turn in watchdog.late(0.0)]
