"""Polls the status of the mirror in a thread, so that a slow database never delays the supervisor: `StatusPoller`."""

import time

import psycopg

from connectors.kafka.log import LogUnavailable
from connectors.runtime.errors import one_line
from connectors.runtime.stop import STOP
from connectors.runtime.worker_thread import WorkerThread
from control.process_status import STREAM_KINDS, check_processes
from control.status import Collector, MirrorStatus
from local.children.supervisor import Supervisor
from schemas.settings import Settings

POLL_SECONDS = 0.5
QUIET_SECONDS = 10.0  # between polls when nothing has changed for a while
SLOWER = 1.5
FIRST_STATUS_SECONDS = 30.0
RETRY_SECONDS = 0.1
STOP_SECONDS = 10.0


class StatusPoller:
    """`failure`: why the last poll failed, or ''. `adaptive`: poll less often while nothing changes."""

    def __init__(self, settings: Settings, supervisor: Supervisor, *, adaptive: bool = True) -> None:
        self._collector = Collector(settings)
        self._supervisor = supervisor
        self._worker = WorkerThread("status", self._run)
        self._longest = QUIET_SECONDS if adaptive else POLL_SECONDS
        self._fresh: MirrorStatus | None = None
        self.failure = ""
        self.start = self._worker.start
        self.exact = self._collector.exact

    def stop(self) -> None:
        self._worker.stop(STOP_SECONDS)

    def take(self) -> MirrorStatus | None:
        """The newest status, once. Raises the error that ended the thread."""
        self._worker.check()
        fresh, self._fresh = self._fresh, None
        return fresh

    def poll(self) -> MirrorStatus:
        """The status now. Raises psycopg.Error and LogUnavailable."""
        processes = [process for process in self._supervisor.processes if process.port]
        return self._collector.collect(check_processes(processes, STREAM_KINDS))

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
        wait, before = POLL_SECONDS, None
        while not self._worker.wait(wait):
            try:
                self._fresh, self.failure = found, _ = self.poll(), ""
                figures = _figures(found)
            except (psycopg.Error, LogUnavailable) as err:
                self.failure, figures = one_line(err), None
            wait = min(wait * SLOWER, self._longest) if figures and figures == before else POLL_SECONDS
            before = figures


def _figures(status: MirrorStatus) -> tuple[object, ...]:
    """What changes while there is work."""
    states = [(process.name, process.state, process.why) for process in status.processes]
    return status.repos, status.records, status.labels, status.events, status.lag, status.buffered_events, states
