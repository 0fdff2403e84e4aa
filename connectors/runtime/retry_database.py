"""Repeat work while the database is unavailable: `retry_database(work, health)`.

A lost connection, a restarting server, a lock timeout and a transaction rolled back by the database are transient, and a
restart of the process would not help. So the flow retries in place, reports the error on its health page and marks progress
for the watchdog. After OUTAGE_SECONDS it raises the error, and the process ends and is restarted.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg import errors

from connectors.runtime import watchdog
from connectors.runtime.health import Health
from connectors.runtime.stop import STOP, Stopping
from steps.backoff import backoff_seconds

X = TypeVar("X")

OUTAGE_SECONDS = 300.0
FIRST_SECONDS = 0.05
LONGEST_SECONDS = 5.0
STOPPING_SECONDS = 5.0  # of retries while the process stops

log = logging.getLogger("retry_database")


class RetriedForever(psycopg.OperationalError):
    """The rest of the mirror can live with this outage, so a restart of the process would not help even after OUTAGE_SECONDS."""

    setting = "SLUICE_SHARDS"


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed later."""
    return isinstance(error, psycopg.OperationalError) and not isinstance(error, errors.ProgramLimitExceeded)


def wait_seconds(failures: int) -> float:
    """Seconds to wait after this many failures in a row."""
    return backoff_seconds(failures, FIRST_SECONDS, LONGEST_SECONDS, growth=4.0)


def retry_database(
    work: Callable[[], X],
    health: Health | None = None,
    *,
    seconds: float = OUTAGE_SECONDS,
    what: str = "the database failed; retrying",
    only: type[psycopg.OperationalError] = psycopg.OperationalError,
) -> X:
    """The result of `work`, which must be safe to repeat. Raises Stopping during a stop.

    `what`: log message of a retry. `only`: the errors that are retried.
    """
    began, failures = time.monotonic(), 0
    while True:
        watchdog.mark()
        try:
            return work()
        except only as err:
            waited = time.monotonic() - began
            if not is_transient(err) or (waited > seconds and not isinstance(err, RetriedForever)):
                raise
            failures += 1
            if STOP.is_set() and waited > STOPPING_SECONDS:
                raise Stopping(str(err)) from err
            why = " ".join(str(err).split())[:300]
            log.warning(what, extra={"error": why, "failures": failures})
            if health is not None and failures > 1:
                health.report("failing", f"{getattr(err, 'setting', 'SLUICE_DATABASE')}: {why}")
            if STOP.is_set():
                time.sleep(min(0.5, wait_seconds(failures)))
            else:
                watchdog.wait(STOP, wait_seconds(failures))
