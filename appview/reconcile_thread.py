"""The thread of an index process that folds (appview/reconcile.py) whenever something waits and nobody else does."""

import logging
import threading
import time
from typing import Any

import psycopg
from psycopg import errors

from appview.gate_versions import prune_lapsed
from appview.reconcile import SQL, fold
from appview.state import read
from connectors.postgres.connection import STATEMENT_SECONDS, connect
from connectors.runtime import metrics, watchdog
from schemas.settings import Settings

IDLE_SECONDS = 0.2
STANDBY_SECONDS = 1.0
UNDONE_SECONDS = 2.0
DRAIN_SECONDS = 10.0
LOOK_SECONDS = 10.0

log = logging.getLogger("appview")

Db = psycopg.Connection[Any]


class FoldDied(Exception):
    """The fold's thread ended with an error, which is its cause."""


class Folding:
    """A thread that folds whenever there is something to fold and nobody else does. `check()` raises what ended it (B8)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="appview fold", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def check(self) -> None:
        """Raise FoldDied if the thread ended with an error."""
        if self._error is not None:
            raise FoldDied from self._error

    def close(self) -> None:
        """Fold what is noted, for a while, and end the thread; the rest stays noted."""
        self._stop.set()
        self._thread.join(2 * DRAIN_SECONDS)

    def _run(self) -> None:
        try:
            with watchdog.watched("appview fold"):
                while not self._stop.is_set():
                    try:
                        with self._connect() as db:
                            self._work(db)
                    except psycopg.OperationalError as err:
                        # the database is gone or has undone it: all of it is still noted
                        log.warning("fold undone", extra={"error": str(err).strip()})
                        watchdog.rest(self._stop, UNDONE_SECONDS)
        except BaseException as err:  # handed to the flow's thread, which dies of it
            self._error = err

    def _connect(self) -> Db:
        db: Db = connect(self._settings.database, "sluice appview fold", statement_seconds=STATEMENT_SECONDS)
        db.execute(SQL["make_stage"])
        return db

    def _work(self, db: Db) -> None:
        """Until the process stops and nothing waits, or not for too long after that."""
        ours, until, look_at = False, 0.0, 0.0
        while True:
            now = time.monotonic()
            if now >= look_at:
                metrics.APPVIEW_INCOMPLETE.set(not read(db).current)
                metrics.APPVIEW_QUARANTINED.set(sum(row[0] for row in db.execute(SQL["refused"])))
                prune_lapsed(db)
                look_at = now + LOOK_SECONDS
            if self._stop.is_set():
                until = until or now + DRAIN_SECONDS
                if now > until:
                    return
            ours = ours or db.execute(SQL["lock"]).fetchone() == (True,)
            if db.execute(SQL["waits"]).fetchone() != (True,):
                if self._stop.is_set():
                    return
                watchdog.rest(self._stop, IDLE_SECONDS if ours else STANDBY_SECONDS)
            elif not ours or not self._fold(db):
                time.sleep(IDLE_SECONDS)

    def _fold(self, db: Db) -> int:
        try:
            with metrics.RECONCILE_SECONDS.time():
                taken = fold(db)
        except errors.DeadlockDetected as err:  # with an index transaction that removes what we flag
            log.warning("fold undone", extra={"error": str(err).strip()})
            return 0
        metrics.RECONCILED.inc(taken)
        return taken
