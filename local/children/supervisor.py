"""Child processes: the supervisor starts them, restarts those that end unexpectedly, and drains them in order.

`Supervisor.tick()` is called a few times a second from the main thread (a child dies with the *thread* that started it, so only that
thread starts children). With a fork server, a child that has a `module` is a fork of it. Output goes to bounded files under `logs/`;
warnings and exits are reported to `say`. A child that exits again and again is restarted with growing delays, from half a second to
half a minute. A tick also ends the children that an operator has stopped, and those whose liveness probe failed.
"""

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from connectors.runtime.watchdog import EXIT_HUNG, EXIT_STUCK
from control.process_status import Process
from local.children.last_words import LastWords, log_text
from local.forks.forked_process import Forked, ForkServer
from local.view.live_view import Part
from steps.backoff import backoff_seconds

LOG_BYTES = 8 * 1024 * 1024
RESTART_FIRST_SECONDS = 0.5
RESTART_MAX_SECONDS = 30.0
LONG_RUN_SECONDS = 60.0  # a child that ran this long starts with the shortest delay again
DRAIN_SECONDS = 30.0
KILL_SECONDS = 30.0
LAST_WORDS_SECONDS = 10.0  # for the end of its output: a descendant may hold the pipe open
PEAKS_SECONDS = 5.0  # between readings of the peaks, which the kernel keeps
LOUD = ("WARNING", "ERROR", "CRITICAL")

Say = Callable[[str, str], None]  # (who, what)


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `env` is added to our environment without its SLUICE_ variables. `on_line` gets every line of output.

    `module`: what a Python command line loads. A fork server runs it if there is one.
    """

    name: str
    kind: str
    argv: Sequence[str]
    env: Mapping[str, str]
    port: int = 0
    on_line: Callable[[str], None] | None = None  # called in a thread
    module: str = ""


class LogFile:
    """A log file that is renamed to `<name>.1.log` when it is full: the disk holds two of them at most."""

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self._path = path
        self._limit = limit
        self._file = path.open("ab")

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        if self._file.tell() > self._limit:
            self._file.close()
            self._path.replace(self._path.with_suffix(".1.log"))
            self._file = self._path.open("ab")

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class Child:
    """One command and its current process."""

    command: Command
    logs: Path
    say: Say
    forks: ForkServer | None = None
    restarts: int = 0
    words: LastWords = field(default_factory=LastWords)
    start_at: float = 0.0  # monotonic time of the next start, while it is not running
    exit_code: int | None = None
    _process: subprocess.Popen[bytes] | Forked | None = None
    _reader: threading.Thread | None = None
    _started: float = 0.0
    _ends: int = 0
    _kill_at: float = math.inf

    @property
    def pid(self) -> int:
        """Pid of the current or the last process; 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def last_words(self) -> str:
        """Why it ended, from its output; '' if the output does not show it."""
        return self.words.text

    def start(self) -> None:
        """Start the process in a session of its own, so that a Ctrl-C reaches only the supervisor."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_") or key in _PASSED_ON}
        log = LogFile(self.logs / f"{self.command.name}.log")
        reading, writing = os.pipe()
        try:
            self._process = self._spawn(env | dict(self.command.env), writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._started, self._kill_at = time.monotonic(), math.inf
        self.exit_code = None
        pipe = os.fdopen(reading, "rb")
        self._reader = threading.Thread(
            target=self._read, args=(pipe, log), name=f"log-{self.command.name}", daemon=True
        )
        self._reader.start()

    def _spawn(self, env: dict[str, str], output: int) -> subprocess.Popen[bytes] | Forked:
        argv = list(self.command.argv)
        if self.forks is not None and self.command.module:
            title = " ".join(("sluice", *argv[4:]))
            module = self.command.module
            try:
                return self.forks.spawn(argv, env=env, stdout=output, stderr=output, title=title, module=module)
            except OSError as err:
                self.say(self.command.name, f"the fork server failed ({err}); started as a process of its own")
        return subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )

    @property
    def restart_wait(self) -> float:
        """Seconds from the last end to the next start."""
        return restart_seconds(self._ends)

    def record_end(self) -> bool:
        """True once, when the process has ended. Sets the time of the next start."""
        if self._process is None or self.running or self.exit_code is not None:
            return False
        self.join()
        self.exit_code = self._process.returncode
        now = time.monotonic()
        self._ends = 1 if now - self._started > LONG_RUN_SECONDS else self._ends + 1
        self.start_at = now + self.restart_wait
        return True

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self._process is not None and self.running:
            self._process.send_signal(number)

    @property
    def is_ending(self) -> bool:
        """Whether `end` was called for the current process."""
        return self._kill_at != math.inf

    def end(self) -> None:
        """Send SIGTERM, once; `kill_late` kills it after DRAIN_SECONDS. Does not wait."""
        if not self.is_ending:
            self._kill_at = time.monotonic() + DRAIN_SECONDS
            self.signal(signal.SIGTERM)

    def kill_late(self) -> None:
        """Send SIGKILL if it still runs although its time to drain is over."""
        if time.monotonic() > self._kill_at:
            self.signal(signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; True if it ended in time."""
        if self._process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, seconds))
        return not self.running

    def join(self) -> None:
        """Wait for the last of its output."""
        if self._reader is not None:
            self._reader.join(LAST_WORDS_SECONDS)

    def _read(self, pipe: IO[bytes], log: LogFile) -> None:
        with pipe:
            for line in pipe:
                log.write(line)
                self._heed(line)
                if self.command.on_line is not None:
                    self.command.on_line(line.decode(errors="replace"))
        log.close()

    def _heed(self, line: bytes) -> None:
        page = self.words.read_line(line.decode(errors="replace"))
        if page is not None and page["level"] in LOUD:
            self.say(self.command.name, log_text(page))


_PASSED_ON = ("SLUICE_CACHE_DIR", "SLUICE_TEST_CONTAINERS")


def restart_seconds(ends: int) -> float:
    """Seconds until the start after the n-th end in a row."""
    return backoff_seconds(max(1, ends), RESTART_FIRST_SECONDS, RESTART_MAX_SECONDS)


def peak_bytes(pid: int) -> int:
    """Highest resident memory of a process; 0 if it is unknown."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


class Peaks(dict[str, int]):
    """Kind → highest resident memory of any of its processes."""

    def __init__(self) -> None:
        super().__init__()
        self._due_at = 0.0

    def read(self, pids: Iterable[tuple[str, int]]) -> None:
        """Read those of (kind, pid)."""
        for kind, pid in pids:
            self[kind] = max(self.get(kind, 0), peak_bytes(pid))

    def read_rarely(self, pids: Iterable[tuple[str, int]]) -> None:
        """As `read`, at most every PEAKS_SECONDS."""
        if time.monotonic() >= self._due_at:
            self.read(pids)
            self._due_at = time.monotonic() + PEAKS_SECONDS


class Supervisor:
    """All children. Used by the main thread only."""

    def __init__(
        self,
        logs: Path,
        say: Say,
        forks: ForkServer | None = None,
        *,
        stopped: Callable[[], Collection[str]] = frozenset,
        failed: Callable[[], Mapping[int, str]] = dict,
    ) -> None:
        """`stopped`: the names of children that must not run. `failed`: pid → why, of those that must be restarted."""
        self._logs = logs
        self._forks = forks
        self._say = say
        self._stopped = stopped
        self._failed = failed
        self.children: list[Child] = []
        self.peaks = Peaks()
        logs.mkdir(parents=True, exist_ok=True)

    def add(self, command: Command) -> Child:
        """Start a command and supervise it from now on."""
        child = Child(command, self._logs, self._say, self._forks)
        self.children.append(child)
        child.start()
        return child

    @property
    def parts(self) -> list[Part]:
        """All children, with their restarts."""
        stopped = self._stopped()
        return [
            Part(child.command.kind, child.running, child.restarts, child.command.name in stopped)
            for child in self.children
        ]

    @property
    def processes(self) -> list[Process]:
        """The children that run now, and with pid 0 those that an operator has stopped, in the order in which they were added."""
        stopped = self._stopped()
        return [
            Process(child.command.name, child.command.kind, child.pid * child.running, child.command.port)
            for child in self.children
            if child.running or child.command.name in stopped
        ]

    def tick(self) -> None:
        """End what must end, detect ends, restart what is due, measure memory."""
        stopped, failed = self._stopped(), self._failed()
        self.peaks.read_rarely((child.command.kind, child.pid) for child in self.children if child.running)
        for child in self.children:
            self._tick(child, failed.get(child.pid, ""), stopped=child.command.name in stopped)

    def _tick(self, child: Child, failed: str, *, stopped: bool) -> None:
        if (stopped or failed) and child.running and not child.is_ending:
            self._say(child.command.name, "stopping, as an operator asked" if stopped else f"{failed}; it is stopped")
            child.end()
        child.kill_late()
        if child.record_end():
            then = "stopped" if stopped else f"restarting in {child.restart_wait:.1f} s"
            words = f"; last words: {child.last_words}" if child.last_words and not stopped else ""
            self._say(child.command.name, f"{ending(child.exit_code)}; {then}{words}")
            if stopped:
                child.start_at = 0.0
            else:
                child.restarts += 1
        elif child.exit_code is not None and not stopped and time.monotonic() >= child.start_at:
            child.words = LastWords()  # its end was reported before
            child.start()

    def drain(self, kinds: Sequence[str], seconds: float = DRAIN_SECONDS) -> bool:
        """Send SIGTERM to all children of these kinds, and SIGKILL to those that still run after `seconds`. True if none was killed."""
        chosen = [child for child in self.children if child.command.kind in kinds]
        self.peaks.read((child.command.kind, child.pid) for child in chosen if child.running)
        for child in chosen:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        late = [child for child in chosen if not child.wait(deadline - time.monotonic())]
        for child in late:
            self._say(child.command.name, f"did not stop within {seconds:.0f} s and was killed")
            child.signal(signal.SIGKILL)
            child.wait(KILL_SECONDS)
        for child in chosen:
            child.join()
            self.children.remove(child)
        return not late

    def kill(self) -> None:
        for child in self.children:
            child.signal(signal.SIGKILL)
        for child in self.children:
            child.wait(KILL_SECONDS)


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    meaning = {EXIT_HUNG: " (it hung)", EXIT_STUCK: " (it did not stop in time)"}.get(code or 0, "")
    return f"ended with exit code {code}{meaning}"
