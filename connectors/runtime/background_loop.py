"""An asyncio loop in its own thread, for a source's sockets and requests. Its errors reach the flow's thread (B8).

`Background(name, main)` runs the coroutine function `main` until it returns. `check()` raises its error in the caller's thread.
`Handover` is the bounded queue from the loop to the flow. `put` ends the flow's rest; while the queue is full `put` waits, so the
socket is not read (back-pressure).
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import accumulate, islice, takewhile
from typing import Generic, TypeVar

import uvloop

from connectors.runtime import watchdog, work

X = TypeVar("X")
Main = Callable[[], Awaitable[None]]

BEGIN_SECONDS = 30.0


class BackgroundDied(Exception):
    """The background work ended with an error (`__cause__`)."""


class Background:
    """A thread with an asyncio loop that runs `main` until it returns or `cancel` is called."""

    def __init__(self, name: str, main: Main) -> None:
        self._main = main
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; returns when its loop runs, so that `cancel` works immediately afterwards."""
        self._thread.start()
        self._begun.wait(BEGIN_SECONDS)

    def check(self) -> None:
        """Raise BackgroundDied if the work ended with an error."""
        if self._error is not None:
            raise BackgroundDied(self._thread.name) from self._error

    @property
    def finished(self) -> bool:
        return self._done.is_set()

    def call(self, function: Callable[[], object]) -> None:
        """Run a function in the loop's thread; ignored if the loop is closed."""
        if self._loop is not None:
            _tell(self._loop, function)

    def cancel(self, wait_seconds: float = 5.0) -> None:
        """Cancel the work and wait for its end, at most `wait_seconds`."""
        self.call(lambda: self._task.cancel() if self._task else None)
        self._done.wait(wait_seconds)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.current_task()
            self._begun.set()
            beat = asyncio.create_task(watchdog.beat(self._thread.name))
            try:
                await self._main()
            finally:
                beat.cancel()

        try:
            uvloop.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as err:  # `check` raises it in the flow's thread
            self._error = err
        finally:
            self._begun.set()
            self._done.set()


class Handover(Generic[X]):
    """A bounded queue from the loop to the flow: `put` waits in the loop while it is full, `take` never blocks."""

    def __init__(self, limit: int, size: Callable[[X], int] = lambda _: 1) -> None:
        self._limit = limit
        self._size = size
        self._items: deque[tuple[X, int]] = deque()
        self._held = 0
        self._waiting = False  # a `put` waits for room
        self._room: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._held

    async def put(self, item: X) -> None:
        """Wait until there is room (one item always fits into an empty queue), then append."""
        if self._room is None:
            self._room, self._loop = asyncio.Event(), asyncio.get_running_loop()
        size = self._size(item)
        while True:
            with self._lock:
                if not self._items or self._held + size <= self._limit:
                    self._items.append((item, size))
                    self._held += size
                    break
                self._room.clear()
                self._waiting = True
            await self._room.wait()
        work.ring()

    def take(self, limit: int, most_size: int | None = None) -> list[X]:
        """Up to `limit` queued items with a total size up to `most_size`, but at least one if there is one."""
        with self._lock:
            count = min(limit, len(self._items))
            if most_size is not None:
                totals = accumulate(size for _, size in islice(self._items, count))
                count = max(min(count, 1), sum(1 for _ in takewhile(lambda total: total <= most_size, totals)))
            taken = [self._items.popleft() for _ in range(count)]
            self._held -= sum(size for _, size in taken)
            waiting, self._waiting = self._waiting and bool(taken), self._waiting and not taken
        if waiting and self._room is not None and self._loop is not None:
            _tell(self._loop, self._room.set)
        return [item for item, _ in taken]


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # the loop is closed; a check with is_closed() first would be a race
        loop.call_soon_threadsafe(function)
