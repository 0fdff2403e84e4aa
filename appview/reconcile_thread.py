"""The thread of an index process that runs `appview.reconcile`, in one process at a time."""

import logging
import time
from typing import Any

import psycopg
from psycopg import errors

from appview.gate_versions import prune_lapsed
from appview.reconcile import SQL, reconcile
from appview.state import read
from connectors.postgres.connection import STATEMENT_SECONDS, connect
from connectors.runtime import metrics
from connectors.runtime.worker_thread import WorkerThread
from schemas.settings import Settings

IDLE_SECONDS = 0.2
STANDBY_SECONDS = 1.0
UNDONE_SECONDS = 2.0
DRAIN_SECONDS = 10.0
STATE_SECONDS = 10.0

log = logging.getLogger("appview")

Db = psycopg.Connection[Any]


class ReconcileDied(Exception):
    """The thread ended with an error, which is the cause of this one."""


class ReconcileThread:
    """Reconciles while there are notes and it has the lock. `check()` raises the error that ended it (B8)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._worker = WorkerThread("appview reconcile", self._run)
        self.start = self._worker.start

    def check(self) -> None:
        """Raise ReconcileDied if the thread ended with an error."""
        if self._worker.error is not None:
            raise ReconcileDied from self._worker.error

    def close(self) -> None:
        """Process notes for DRAIN_SECONDS more, then end the thread. Other notes stay for the next process."""
        self._worker.stop(2 * DRAIN_SECONDS)

    def _run(self) -> None:
        while not self._worker.stopping:
            try:
                with self._connect() as db:
                    self._work(db)
            except psycopg.OperationalError as err:
                # the notes are still there
                log.warning("reconciliation rolled back", extra={"error": str(err).strip()})
                self._worker.wait(UNDONE_SECONDS)

    def _connect(self) -> Db:
        db: Db = connect(self._settings.database, "sluice appview reconcile", statement_seconds=STATEMENT_SECONDS)
        db.execute(SQL["make_stage"])
        return db

    def _work(self, db: Db) -> None:
        """Until the process stops and no note is due, or DRAIN_SECONDS after the stop."""
        ours, until, state_at = False, 0.0, 0.0
        while True:
            now = time.monotonic()
            if now >= state_at:
                metrics.APPVIEW_INCOMPLETE.set(not read(db).current)
                metrics.APPVIEW_QUARANTINED.set(sum(row[0] for row in db.execute(SQL["refused"])))
                prune_lapsed(db)
                state_at = now + STATE_SECONDS
            if self._worker.stopping:
                until = until or now + DRAIN_SECONDS
                if now > until:
                    return
            ours = ours or db.execute(SQL["lock"]).fetchone() == (True,)
            if db.execute(SQL["is_due"]).fetchone() != (True,):
                if self._worker.stopping:
                    return
                self._worker.wait(IDLE_SECONDS if ours else STANDBY_SECONDS)
            elif not ours or not self._reconcile(db):
                time.sleep(IDLE_SECONDS)

    def _reconcile(self, db: Db) -> int:
        try:
            with metrics.RECONCILE_SECONDS.time():
                taken = reconcile(db)
        except errors.DeadlockDetected as err:  # an index transaction removed rows that this one flags
            log.warning("reconciliation rolled back", extra={"error": str(err).strip()})
            return 0
        metrics.RECONCILED.inc(taken)
        return taken
