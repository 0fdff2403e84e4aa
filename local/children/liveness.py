"""Finds processes that do not answer, as the kubelet does: `Liveness`.

It requests /healthz with the periods and limits of the probes in deploy/k8s/base/pod.yaml (a test compares them). /healthz fails if
the process hangs, and not while it waits for a broken log, database or upstream. /readyz is not probed: a process that is connected
but makes no progress is shown as stalled, and not restarted, here as on Kubernetes.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from connectors.runtime.worker_thread import WorkerThread
from control.process_status import Process, request

PERIOD_SECONDS = 10.0
TIMEOUT_SECONDS = 5.0
FAILURES = 6
STARTUP_PERIOD_SECONDS = 2.0  # until the first answer
STARTUP_FAILURES = 150
STOP_SECONDS = 10.0
AT_ONCE = 8


@dataclass(slots=True)
class _Probed:
    """The probes of one process so far. `due_at`: monotonic time of the next one."""

    failures: int = 0
    answered: bool = False
    why: str = ""
    due_at: float = 0.0

    @property
    def failed(self) -> bool:
        return self.failures >= (FAILURES if self.answered else STARTUP_FAILURES)


class Liveness:
    """Probes the processes of `processes()` in a thread. One without an HTTP port is not probed."""

    def __init__(self, processes: Callable[[], list[Process]], scale: float = 1.0) -> None:
        """`scale`: of all times, for tests."""
        self._processes = processes
        self._scale = scale
        self._probed: dict[int, _Probed] = {}
        self._worker = WorkerThread("liveness", self._run)
        self.start = self._worker.start

    def failed(self) -> dict[int, str]:
        """Pid → why, of the processes that must be restarted. Raises the error that ended the thread."""
        self._worker.check()
        return {pid: probed.why for pid, probed in self._probed.items() if probed.failed}

    def stop(self) -> None:
        """End the thread."""
        self._worker.stop(STOP_SECONDS)

    def _run(self) -> None:
        with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="liveness") as pool:
            while not self._worker.wait(STARTUP_PERIOD_SECONDS * self._scale):
                served = [process for process in self._processes() if process.port and process.pid]
                self._probed = dict(
                    zip([process.pid for process in served], pool.map(self._probe, served), strict=True)
                )

    def _probe(self, process: Process) -> _Probed:
        before, now = self._probed.get(process.pid, _Probed()), time.monotonic()
        if now < before.due_at:
            return before
        try:
            status, _ = request(process.port, "/healthz", TIMEOUT_SECONDS * self._scale)
            why = "" if status < 400 else f"status {status}"
        except OSError as err:
            why = str(err)
        answered, failures = before.answered or not why, before.failures + 1 if why else 0
        period = PERIOD_SECONDS if answered else STARTUP_PERIOD_SECONDS
        why = why and f"/healthz failed {failures} times in a row ({why})"
        return _Probed(failures, answered, why, now + period * self._scale)
