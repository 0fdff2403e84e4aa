"""Processes started and stopped like a Deployment's pods: started all at once, stopped with SIGTERM, grace, SIGKILL.

`Fleet(environment, folder)` starts `sluice run KIND`, each with its own port; readiness is read from its health page. `roll`
replaces one after another: the new one is ready before the old one gets SIGTERM (maxSurge 1, maxUnavailable 0, as in deploy/k8s).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from control.process_status import Process, check_process
from local.embedded.guarded_process import free_port

READY_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a process ended: seconds from SIGTERM to its end, its exit code; `killed`: by SIGKILL after the grace."""

    kind: str
    seconds: float
    code: int
    killed: bool


class Started(Protocol):
    """What a pod needs of `subprocess.Popen`."""

    pid: int
    returncode: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def terminate(self) -> None: ...


Start = Callable[[str, dict[str, str], int], Started]
"""(kind, environment, file descriptor for its output) → the process `sluice run KIND`"""


def start_interpreter(kind: str, environment: dict[str, str], output: int) -> Started:
    """An interpreter of its own."""
    command = [sys.executable, "-m", "cli", "run", kind, "--parent", str(os.getpid())]
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


class Pod:
    """One process."""

    def __init__(self, kind: str, environment: Mapping[str, str], log: Path, start: Start) -> None:
        self.kind = kind
        self.port = free_port()
        self.log = log
        given = {**environment, "SLUICE_HTTP_PORT": str(self.port), "SLUICE_LOG_FORMAT": "json"}
        with log.open("ab") as out:
            self._process = start(kind, given, out.fileno())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """The result of its readiness probe."""
        return check_process(Process(self.kind, self.kind, self.pid, self.port)).ready

    def await_ready(self) -> float:
        """Seconds until it was ready. Raises RuntimeError with its last output if it ended, or takes too long."""
        begin = time.monotonic()
        while not self.ready:
            if not self.running or time.monotonic() - begin > READY_SECONDS:
                raise RuntimeError(f"{self.kind} is not ready: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)
        return time.monotonic() - begin

    def stop(self, grace_seconds: float) -> Stopped:
        """SIGTERM; SIGKILL after the grace period."""
        begin, killed = time.monotonic(), False
        self._process.terminate()
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            killed = True
            self.kill()
        return Stopped(self.kind, time.monotonic() - begin, self._process.returncode, killed)

    def kill(self) -> None:
        """SIGKILL; returns when it has ended."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Fleet:
    """All processes of a mirror, some kinds several times."""

    def __init__(
        self,
        environment: Mapping[str, str],
        folder: Path,
        grace_seconds: float = 30.0,
        start: Start = start_interpreter,
    ) -> None:
        self._environment = environment
        self._start_process = start
        self._folder = folder
        self._grace = grace_seconds
        self._started = 0
        self.pods: list[Pod] = []

    def of(self, kind: str) -> list[Pod]:
        """The processes of a kind, the oldest first."""
        return [pod for pod in self.pods if pod.kind == kind]

    def start(self, kind: str) -> Pod:
        """Start one more process."""
        self._started += 1
        pod = Pod(kind, self._environment, self._folder / f"{self._started}-{kind}.log", self._start_process)
        self.pods.append(pod)
        return pod

    def scale(self, count: int, *kinds: str) -> tuple[float, list[Stopped]]:
        """Like `kubectl scale`: starts the missing ones, or stops the newest ones, all at once.

        Returns the seconds until all were ready or ended, and how the stopped ones ended.
        """
        begin = time.monotonic()
        started = [self.start(kind) for kind in kinds for _ in range(count - len(self.of(kind)))]
        for pod in started:
            pod.await_ready()
        ended = self.stop([pod for kind in kinds for pod in self.of(kind)[count:]])
        return time.monotonic() - begin, ended

    def roll(self, *kinds: str) -> tuple[float, list[Stopped]]:
        """Like `kubectl rollout restart`, all kinds in parallel. Returns the seconds, and how the old ones ended."""
        begin, ended = time.monotonic(), list[Stopped]()
        old = [self.of(kind) for kind in kinds]
        # started from this thread: a child ends with the thread that started it (local.run.die_with)
        for turn in zip_longest(*old):
            going = [pod for pod in turn if pod is not None]
            for pod in [self.start(pod.kind) for pod in going]:
                pod.await_ready()
            ended += self.stop(going)
        return time.monotonic() - begin, ended

    def stop(self, pods: list[Pod]) -> list[Stopped]:
        """Stop these in parallel."""
        if not pods:
            return []
        with ThreadPoolExecutor(len(pods)) as pool:
            ended = list(pool.map(lambda pod: pod.stop(self._grace), pods))
        self.pods = [pod for pod in self.pods if pod not in pods]
        return ended

    def kill(self, pod: Pod) -> None:
        """Like the failure of its node."""
        pod.kill()
        self.pods.remove(pod)

    def check(self) -> None:
        """Raises RuntimeError if one has ended unexpectedly."""
        for pod in self.pods:
            if not pod.running:
                raise RuntimeError(f"{pod.kind} ended: {pod.log.read_text()[-2000:]}")
