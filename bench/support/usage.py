"""CPU seconds and peak memory of processes, and the CPU that other processes of the machine used meanwhile.

Every report has the last figure, since results on a shared machine depend on it.
"""

import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import psutil

SAMPLE_SECONDS = 0.5


@dataclass(slots=True)
class _Cost:
    cpu_before: float
    cpu: float = 0.0
    peak: int = 0
    at_sum: int = 0  # its PSS when the sum of all was the largest


class Usage:
    """Counts from construction to `stop`. `processes`: kind → pid; children count with their parent, but not our own."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = {kind: psutil.Process(pid) for kind, pid in processes.items()}
        self._began = time.monotonic()
        self._machine = _busy()
        self._costs = {kind: _Cost(_look(process)[0]) for kind, process in self._processes.items()}
        self._seconds = 0.0
        self._others = 0.0
        self._sum = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """The figures: `seconds`, `cpu_seconds`, `cores_taken_by_others` (a mean); memory by kind.

        `peak_mb`: the largest RSS of one process; `sum_pss_mb`: PSS, which counts shared pages once, when its sum was the largest.
        """
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._sample()
            self._seconds = time.monotonic() - self._began
            ours = sum(cost.cpu for cost in self._costs.values())
            self._others = max(0.0, (_busy() - self._machine - ours) / self._seconds)
        return {
            "seconds": round(self._seconds, 2),
            "cpu_seconds": {kind: round(cost.cpu, 2) for kind, cost in self._costs.items()},
            "peak_mb": {kind: cost.peak // 1_000_000 for kind, cost in self._costs.items()},
            "sum_pss_mb": {kind: cost.at_sum // 1_000_000 for kind, cost in self._costs.items()},
            "cores_taken_by_others": round(self._others, 2),
        }

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        shared: dict[str, int] = {}
        for kind, process in self._processes.items():
            cpu, memory, shared[kind] = _look(process)
            cost = self._costs[kind]
            cost.cpu = max(cost.cpu, cpu - cost.cpu_before)
            cost.peak = max(cost.peak, memory)
        if (total := sum(shared.values())) > self._sum:
            self._sum = total
            for kind, size in shared.items():
                self._costs[kind].at_sum = size


def _look(process: psutil.Process) -> tuple[float, int, int]:
    """CPU seconds of a process and its children, the largest RSS among them, and the sum of their PSS (zeros: it has ended)."""
    cpu, largest, shared = 0.0, 0, 0
    try:
        family = [process] if process.pid == os.getpid() else [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0, 0, 0
    for member in family:
        try:
            times = member.cpu_times()
            memory = member.memory_full_info()
            largest = max(largest, memory.rss)
            shared += memory.pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        cpu += times.user + times.system
    return cpu, largest, shared


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - getattr(times, "guest", 0.0))
