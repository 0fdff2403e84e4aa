"""Automatic retries of dead letters whose signing key was not available: `DeadLetterRetry`.

A PLC directory that is partly down or lags, or a did:web that is briefly unavailable, causes valid events to be rejected. If it was
the account's last event, it would be missing until the next listing. So its dead letter is retried at the ages `AFTER_SECONDS`,
with the keys available then. A letter whose key is still not available stays open. Commits too big for their frame have a check of
their own (control/tasks/big_commits.py).

The thread may block on the directory, so this is not one of control's steps. A flood of forged commits gets a bounded share of
each round, in random order.
"""

import logging
import time

import psycopg

from connectors.kafka.log import LogUnavailable
from connectors.runtime import metrics, watchdog
from connectors.runtime.errors import one_line
from connectors.runtime.worker_thread import WorkerThread
from control.dead_letters import DeadLetters
from control.tasks.big_commits import BigCommits
from schemas.errors import OperatorError
from schemas.settings import Settings

AFTER_SECONDS = (60.0, 300.0, 1500.0, 7200.0, 28_800.0, 86_400.0)
ROUND_SECONDS = 30.0
ROUND_LETTERS = 500

logger = logging.getLogger("control")


class DeadLetterRetry:
    """Retries while `leads` is true. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._letters = DeadLetters(settings)
        self._big_commits = BigCommits(settings)
        self.worker = WorkerThread("dead letter retry", self._run)
        self.leads = False

    def round(self, span: float) -> dict[str, int]:
        """Retry the letters that reached one of the ages within the last `span` seconds; counts of "retried" and "open".

        Raises psycopg.OperationalError, LogUnavailable, Stopping.
        """
        counts = {"retried": 0, "open": 0}
        end = time.monotonic() + ROUND_SECONDS
        for place in self._letters.due_again(AFTER_SECONDS, span, ROUND_LETTERS):
            if self.worker.stopping or time.monotonic() > end:
                break
            try:
                counts[self._letters.retry(place).state] += 1
            except OperatorError:  # an operator retried or dismissed it meanwhile
                continue
        _report(counts, "dead letters without a key retried")
        return counts

    def _run(self) -> None:
        try:
            self._rounds()
        finally:
            self._letters.close()
            self._big_commits.close()

    def _rounds(self) -> None:
        last = time.monotonic()
        while not self.worker.wait(ROUND_SECONDS):
            now = time.monotonic()
            if self.leads:
                try:
                    self.round(now - last)
                    watchdog.mark()
                    _report(self._big_commits.round(), "commits too big for their frame checked with their PDSes")
                except (psycopg.OperationalError, LogUnavailable) as err:
                    logger.warning("dead letters are retried later", extra={"why": one_line(err)})
                    continue  # `last` stays: the next round covers this time too
            last = now


def _report(counts: dict[str, int], what: str) -> None:
    for state, count in counts.items():
        metrics.LETTERS_CHECKED.labels(state).inc(count)
    if any(counts.values()):
        logger.info(what, extra=counts)
