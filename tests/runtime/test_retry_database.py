"""What passes by itself is tried again within the flow; what does not is raised at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import errors

from connectors.runtime import retry_database as retry_module
from connectors.runtime.health import Health
from connectors.runtime.retry_database import retry_database
from connectors.runtime.stop import Stopping


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    flag = threading.Event()
    monkeypatch.setattr(retry_module, "STOP", flag)
    monkeypatch.setattr(retry_module, "FIRST_SECONDS", 0.0001)
    return flag


def failing(times: int, error: type[Exception]) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error("gone")
        return "done"

    return work, calls


@pytest.mark.parametrize("error", [psycopg.OperationalError, errors.DeadlockDetected, errors.LockNotAvailable])
def test_a_lost_connection_is_no_end(stop: threading.Event, error: type[Exception]) -> None:
    """H1: tried until it works, with the reason in the health page."""
    health = Health("index")
    work, calls = failing(3, error)
    assert retry_database(work, health) == "done"
    assert len(calls) == 4
    assert (health.state, health.why) == ("failing", "SLUICE_DATABASE: gone")


@pytest.mark.parametrize("error", [errors.ProgramLimitExceeded, errors.UniqueViolation, ValueError])
def test_what_does_not_pass_is_raised_at_once(stop: threading.Event, error: type[Exception]) -> None:
    work, calls = failing(1, error)
    with pytest.raises(error):
        retry_database(work)
    assert len(calls) == 1


def test_it_ends_after_a_while(stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.02)  # each call advances it by 20 ms
    monkeypatch.setattr(retry_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    work, calls = failing(1 << 30, psycopg.OperationalError)
    with pytest.raises(psycopg.OperationalError):
        retry_database(work, seconds=0.05)
    assert len(calls) == 3


def test_a_stop_ends_it_without_an_error(stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the batch is done, and no position covers it."""
    monkeypatch.setattr(retry_module, "STOPPING_SECONDS", 0.0)
    stop.set()
    with pytest.raises(Stopping):
        retry_database(failing(1 << 30, psycopg.OperationalError)[0])


def test_the_wait_grows_and_is_bounded() -> None:
    waits = [retry_module.wait_seconds(failures) for failures in range(1, 30)]
    assert waits == sorted(waits)
    assert waits[0] == retry_module.FIRST_SECONDS
    assert waits[-1] == retry_module.LONGEST_SECONDS
