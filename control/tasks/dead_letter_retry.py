"""Letters of commits and labels whose key nobody could tell: looked at again by themselves, a few times over a day.

A directory that is only partly there, a mirror of it that lags, a did:web that is silent for a moment: each refuses what is
true, and if that was an account's last commit nothing would bring it back before the next listing. So such a letter is retried
at the ages of `AFTER_SECONDS`, each time with the code and the keys of that moment, and what is true then takes its usual way.
What stays without a key stays open. Commits too big for their frame have a look of their own (`control/tasks/big_commits.py`). Runs in a thread of its own, as a directory that is away is waited for; a flood of
forged commits has a bounded share of each round, in random order.
"""

import logging
import threading
import time

import psycopg

from connectors.kafka.log import LogUnavailable
from connectors.runtime import metrics, watchdog
from connectors.runtime.errors import one_line
from connectors.runtime.stop import STOP, Stopping
from control.dead_letters import DeadLetters
from control.tasks.big_commits import BigCommits
from schemas.errors import OperatorError
from schemas.settings import Settings

AFTER_SECONDS = (60.0, 300.0, 1500.0, 7200.0, 28_800.0, 86_400.0)
ROUND_SECONDS = 30.0
ROUND_LETTERS = 500
STOP_SECONDS = 1.0

logger = logging.getLogger("control")


class SecondLooks:
    """Retries while `leads`. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._letters = DeadLetters(settings)
        self._big_commits = BigCommits(settings)
        self._ended = threading.Event()
        self._died: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="second looks", daemon=True)
        self.leads = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def check(self) -> None:
        """Raise what ended the thread."""
        if self._died is not None:
            raise self._died

    def stop(self) -> None:
        """End it; a retry that runs is not waited for."""
        self._ended.set()
        self._thread.join(STOP_SECONDS)

    def look(self, span: float) -> dict[str, int]:
        """Retry what came to one of the ages within the last `span` seconds; how many are retried now, and still open.

        Raises psycopg.OperationalError, LogUnavailable, Stopping.
        """
        counts = {"retried": 0, "open": 0}
        end = time.monotonic() + ROUND_SECONDS
        for place in self._letters.due_again(AFTER_SECONDS, span, ROUND_LETTERS):
            if self._ended.is_set() or time.monotonic() > end:
                break
            try:
                counts[self._letters.retry(place).state] += 1
            except OperatorError:  # settled by somebody meanwhile
                continue
        _report(counts, "letters without a key looked at again")
        return counts

    def _run(self) -> None:
        try:
            with watchdog.watched("second looks"):
                self._rounds()
        except Stopping:
            pass
        except BaseException as err:  # raised by `check`, in control's thread
            self._died = err
        finally:
            self._letters.close()
            self._big_commits.close()

    def _rounds(self) -> None:
        looked = time.monotonic()
        while not watchdog.rest(self._ended, ROUND_SECONDS) and not STOP.is_set():
            now = time.monotonic()
            if self.leads:
                try:
                    self.look(now - looked)
                    watchdog.mark()
                    _report(self._big_commits.look(), "commits too big for their frame: asked their PDSes")
                except (psycopg.OperationalError, LogUnavailable) as err:
                    logger.warning("letters are looked at again later", extra={"why": one_line(err)})
                    continue  # what came to its age meanwhile is due still
            looked = now


def _report(counts: dict[str, int], what: str) -> None:
    for state, count in counts.items():
        metrics.LETTERS_CHECKED.labels(state).inc(count)
    if any(counts.values()):
        logger.info(what, extra=counts)
