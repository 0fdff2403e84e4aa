"""Ends a process that hangs, and logs where it hung.

Every thread that must not hang has a `Progress`, the time of its last progress. `watched(name)` registers the calling thread,
`mark()` records progress, `beat(name)` marks an event loop. Calls that wait for I/O have their own deadlines and mark while
they wait. A thread without a mark for `watchdog_seconds` is hung.

A thread that waits on purpose is marked up to the end of its wait, so it need not wake to mark. `Watchdog` checks the turns from its
own thread. On a hang it logs the stacks of all threads, `/healthz` answers 503, and the
process exits with EXIT_HUNG. A process that has not ended `stop_seconds` after SIGTERM exits with EXIT_STUCK. The signal arrives
through a pipe, so this works even if the main thread is blocked in C code. Code that never releases the GIL blocks the
watchdog too; then the timer of `faulthandler`, which does not need the GIL, ends the process with stacks and exit code 1.
"""

import asyncio
import faulthandler
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from connectors.runtime import work

EXIT_HUNG = 71
EXIT_STUCK = 72
TICK_SECONDS = 2.0  # between checks, or half of `watchdog_seconds`
FROZEN_SECONDS = 5.0  # if the watchdog itself did not run for this long, the whole process was suspended
SHOWN_SECONDS = 3.0  # between the 503 and the exit
LOG_SECONDS = 5.0  # to write the log line and the stacks; a hung thread may hold the logging lock
INTERPRETER_SECONDS = 30.0  # beyond `watchdog_seconds`, until the faulthandler timer fires
BEAT_SECONDS = 5.0
ARM_SECONDS = 5.0
SECOND_SIGNAL_SECONDS = 1.0

logger = logging.getLogger("watchdog")


class Hangs(Protocol):
    """`hung` is shown on the health page."""

    hung: str


@dataclass(slots=True, eq=False)
class Progress:
    """Time (monotonic) of a thread's last progress, or of the end of its wait. `name` is shown to operators; `thread` is its ident, 0 for a task."""

    name: str
    thread: int
    marked_at: float

    def mark(self, wait_seconds: float = 0.0) -> None:
        """Progress now. `wait_seconds`: none is expected for so long."""
        self.marked_at = time.monotonic() + wait_seconds


_lock = threading.Lock()
_turns: list[Progress] = []
_mine: dict[int, Progress] = {}  # thread → its turn


@contextmanager
def watched_task(name: str, thread: int = 0) -> Iterator[Progress]:
    """A turn of a task instead of a thread; the task calls `mark` of the yielded turn."""
    turn = Progress(name, thread, time.monotonic())
    with _lock:
        _turns.append(turn)
    try:
        yield turn
    finally:
        with _lock:
            _turns.remove(turn)


@contextmanager
def watched(name: str) -> Iterator[Progress]:
    """Watch the calling thread until the end of the block; it must call `mark()` regularly."""
    thread = threading.get_ident()
    before = _mine.get(thread)
    with watched_task(name, thread) as turn:
        _mine[thread] = turn
        try:
            yield turn
        finally:
            if before is None:
                _mine.pop(thread, None)
            else:
                before.mark()
                _mine[thread] = before


def mark() -> None:
    """Record progress of the calling thread; ignored if it is not watched."""
    turn = _mine.get(threading.get_ident())
    if turn is not None:
        turn.marked_at = time.monotonic()


def wait(event: threading.Event, seconds: float) -> bool:
    """`event.wait(seconds)`, marked up to its end."""
    turn = _mine.get(threading.get_ident())
    if turn is not None:
        turn.mark(seconds)
    try:
        return event.wait(seconds)
    finally:
        mark()


async def beat(name: str) -> None:
    """Mark the running event loop every BEAT_SECONDS, each time up to the next, until cancelled."""
    with watched_task(name, threading.get_ident()) as turn:
        while True:
            turn.mark(BEAT_SECONDS)
            await asyncio.sleep(BEAT_SECONDS)


def late(seconds: float) -> list[Progress]:
    """Turns without a mark for `seconds`."""
    limit = time.monotonic() - seconds
    with _lock:
        return [turn for turn in _turns if turn.marked_at < limit]


def mark_all() -> None:
    """Mark all turns: the process was suspended, so no thread could."""
    with _lock:
        for turn in _turns:
            turn.marked_at = max(turn.marked_at, time.monotonic())


def where(thread: int) -> str:
    """File, line and function of a thread's innermost frame in our code, and of its innermost frame."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "no thread of the interpreter"
    stack = traceback.extract_stack(frame)
    ours = [one for one in stack if "site-packages" not in one.filename and "/lib/python" not in one.filename]
    shown = [f"{_short(one.filename)}:{one.lineno} ({one.name})" for one in ((ours or stack)[-1], stack[-1])]
    return ", then ".join(dict.fromkeys(shown))


def _short(path: str) -> str:
    return "/".join(path.split("/")[-2:])


class Signals:
    """SIGTERM and SIGINT through a wakeup pipe, which the C handler writes even while the main thread is blocked in C code."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> int:
        """Wait at most `seconds` for a signal; returns the number of signals received."""
        if not select.select([self._read], [], [], seconds)[0]:
            return 0
        return sum(number in (signal.SIGTERM, signal.SIGINT) for number in os.read(self._read, 4096))

    def wake(self) -> None:
        """End a `wait` without a signal."""
        with suppress(BlockingIOError):  # full: it ends anyway
            os.write(self._write, b"\0")


class Watchdog:
    """One per process. `stop` is set when a signal arrives; `exit` ends the process immediately."""

    def __init__(
        self,
        health: Hangs,
        stop: threading.Event,
        seconds: float,
        stop_seconds: float,
        *,
        signals: Signals | None = None,
        exit: Callable[[int], None] = os._exit,
    ) -> None:
        self._health = health
        self._stop = stop
        self._seconds = seconds
        self._tick = min(TICK_SECONDS, seconds / 2)
        self._stop_seconds = stop_seconds
        self._signals = signals
        self._exit = exit
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        faulthandler.enable()
        self._thread.start()

    def ending(self) -> None:
        """Stop watching when the work is done; a timer ends the process if the interpreter's shutdown hangs."""
        self._ended.set()
        if self._signals is not None:
            self._signals.wake()
        self._thread.join(2 * TICK_SECONDS + LOG_SECONDS)
        faulthandler.dump_traceback_later(self._stop_seconds, exit=True)

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException:  # the process must not continue without a watchdog
            logger.exception("the watchdog failed")
            self._exit(EXIT_HUNG)

    def _watch(self) -> None:
        stop_at, signalled, ran_at, armed_at = float("inf"), 0, time.monotonic(), float("-inf")
        while not self._ended.is_set():
            if ran_at - armed_at > ARM_SECONDS:
                # if another thread never releases the GIL, this is not rearmed, and the timer ends the process
                faulthandler.dump_traceback_later(self._seconds + INTERPRETER_SECONDS, exit=True)
                armed_at = ran_at
            came = self._pause()
            now = time.monotonic()
            if now - ran_at > min(FROZEN_SECONDS, self._seconds / 2 + self._tick):
                mark_all()
                if stop_at != float("inf"):
                    stop_at = max(stop_at, now + FROZEN_SECONDS)
            ran_at = now
            signalled += came
            if came:
                self._stop.set()
                work.ring()
            if self._stop.is_set():
                stop_at = min(stop_at, now + (SECOND_SIGNAL_SECONDS if signalled > 1 else self._stop_seconds))
            if now > stop_at:
                self._end(EXIT_STUCK, f"it did not end within {self._stop_seconds:.0f} s of the request to stop", 0.0)
            elif hanging := late(self._seconds):
                names = "; ".join(f"{one.name} at {where(one.thread)}" for one in hanging)
                self._end(EXIT_HUNG, f"no progress for {self._seconds:.0f} s: {names}", SHOWN_SECONDS)

    def _pause(self) -> int:
        if self._signals is not None:
            return self._signals.wait(self._tick)
        self._ended.wait(self._tick)
        return 0

    def _end(self, code: int, why: str, shown_seconds: float) -> None:
        self._health.hung = why
        faulthandler.dump_traceback_later(LOG_SECONDS + shown_seconds, exit=True)
        logger.critical("the process exits", extra={"reason": why, "exit_code": code})
        faulthandler.dump_traceback(all_threads=True)
        time.sleep(shown_seconds)
        self._exit(code)
