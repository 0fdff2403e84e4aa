"""Polls the status of the mirror in a thread, so that a slow database never delays the supervisor: `StatusPoller`."""

import time

import psycopg

from connectors.kafka.log import LogUnavailable
from connectors.runtime.errors import one_line
from connectors.runtime.stop import STOP
from connectors.runtime.worker_thread import WorkerThread
from control.process_status import check_processes
from control.status import Collector, MirrorStatus
from local.supervisor import Supervisor
from schemas.settings import Settings

POLL_SECONDS = 0.5
FIRST_STATUS_SECONDS = 30.0
RETRY_SECONDS = 0.1
STOP_SECONDS = 10.0


class StatusPoller:
    """`failure`: why the last poll failed, or ''."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self._collector = Collector(settings)
        self._supervisor = supervisor
        self._worker = WorkerThread("status", self._run)
        self._fresh: MirrorStatus | None = None
        self.failure = ""
        self.start = self._worker.start
        self.exact = self._collector.exact

    def stop(self) -> None:
        """End the thread."""
        self._worker.stop(STOP_SECONDS)

    def take(self) -> MirrorStatus | None:
        """The newest status, once. Raises the error that ended the thread."""
        self._worker.check()
        fresh, self._fresh = self._fresh, None
        return fresh

    def poll(self) -> MirrorStatus:
        """The status now. Raises psycopg.Error and LogUnavailable."""
        processes = [process for process in self._supervisor.processes if process.port]
        return self._collector.collect(check_processes(processes, with_metrics=True))

    def first(self) -> MirrorStatus:
        """The first status; retries for `FIRST_STATUS_SECONDS`. Raises psycopg.Error and LogUnavailable."""
        deadline = time.monotonic() + FIRST_STATUS_SECONDS
        while True:
            try:
                return self.poll()
            except (psycopg.Error, LogUnavailable):
                if time.monotonic() > deadline or STOP.wait(RETRY_SECONDS):
                    raise

    def _run(self) -> None:
        while not self._worker.wait(POLL_SECONDS):
            try:
                self._fresh, self.failure = self.poll(), ""
            except (psycopg.Error, LogUnavailable) as err:
                self.failure = one_line(err)
