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


class Usage:
    """Counts from construction to `stop`. `processes`: kind → pid; children count with their parent, but not our own."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = {kind: psutil.Process(pid) for kind, pid in processes.items()}
        self._began = time.monotonic()
        self._machine = _busy()
        self._costs = {kind: _Cost(_look(process)[0]) for kind, process in self._processes.items()}
        self._seconds = 0.0
        self._others = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """The figures: `seconds`, `cpu_seconds` and `peak_mb` by kind, `cores_taken_by_others` (a mean)."""
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
            "cores_taken_by_others": round(self._others, 2),
        }

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        for kind, process in self._processes.items():
            cpu, memory = _look(process)
            cost = self._costs[kind]
            cost.cpu = max(cost.cpu, cpu - cost.cpu_before)
            cost.peak = max(cost.peak, memory)


def _look(process: psutil.Process) -> tuple[float, int]:
    """CPU seconds of a process and its children, and the largest resident size among them (0, 0: it has ended)."""
    cpu, largest = 0.0, 0
    try:
        family = [process] if process.pid == os.getpid() else [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0, 0
    for member in family:
        try:
            times = member.cpu_times()
            largest = max(largest, member.memory_info().rss)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        cpu += times.user + times.system
    return cpu, largest


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - getattr(times, "guest", 0.0))
