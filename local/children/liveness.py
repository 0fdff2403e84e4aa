"""Finds processes that do not answer, as the kubelet does: `Liveness`.

It requests /healthz with the periods and limits of the probes in deploy/k8s/base/pod.yaml (a test compares them). /healthz fails if
the process hangs, and not while it waits for a broken log, database or upstream. /readyz is not probed: a process that is connected
but makes no progress is shown as stalled, and not restarted, here as on Kubernetes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from connectors.runtime.worker_thread import WorkerThread
from control.process_status import Process, request

PERIOD_SECONDS = 10.0
TIMEOUT_SECONDS = 5.0
FAILURES = 6
STARTUP_FAILURES = 30  # before the first answer: 300 s, as startupProbe has
STOP_SECONDS = 10.0


@dataclass(slots=True)
class _Probed:
    failures: int = 0
    answered: bool = False
    why: str = ""

    @property
    def failed(self) -> bool:
        return self.failures >= (FAILURES if self.answered else STARTUP_FAILURES)


class Liveness:
    """Probes the processes of `processes()` in a thread. One without an HTTP port is not probed."""

    def __init__(
        self,
        processes: Callable[[], list[Process]],
        period_seconds: float = PERIOD_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._processes = processes
        self._period = period_seconds
        self._timeout = timeout_seconds
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
        with ThreadPoolExecutor(max_workers=8, thread_name_prefix="liveness") as pool:
            while not self._worker.wait(self._period):
                served = [process for process in self._processes() if process.port and process.pid]
                answers = pool.map(self._probe, served)
                found = {}
                for process, why in zip(served, answers, strict=True):
                    found[process.pid] = _after(self._probed.get(process.pid, _Probed()), why)
                self._probed = found

    def _probe(self, process: Process) -> str:
        """Why the probe failed; '' if it did not."""
        try:
            status, _ = request(process.port, "/healthz", self._timeout)
        except OSError as err:
            return str(err)
        return "" if status < 400 else f"status {status}"


def _after(before: _Probed, why: str) -> _Probed:
    if not why:
        return _Probed(answered=True)
    failures = before.failures + 1
    return _Probed(failures, before.answered, f"/healthz failed {failures} times in a row ({why})")
