"""One snapshot for all open pages: `Poller` reads snapshots while a stream is open, and wakes the streams.

It runs in the API's event loop; snapshots are read in the context's threads. Reading takes at most a tenth of the time: on a
large database snapshots come less often. A failure is shown on the page, and polling continues.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool import PoolTimeout

from connectors.kafka.log import LogUnavailable
from connectors.postgres.pooled_calls import TooManyCalls
from connectors.runtime.errors import one_line
from control.api.context import Context
from control.page.page_snapshot import PageSnapshot, SnapshotReader
from control.page.rendering import render_sections
from schemas.errors import OperatorError

EVERY_SECONDS = 2.0
SHARE = 10.0
LAST_READS = 3
FAILURES = (psycopg.Error, PoolTimeout, LogUnavailable, OperatorError, TooManyCalls)


def pause(took: Iterable[float]) -> float:
    """Seconds until the next snapshot, given the seconds that the last ones took to read."""
    return max(EVERY_SECONDS, SHARE * min(took, default=0.0))


class Poller:
    """The newest snapshot, its number, and the error of the last attempt."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._reader = SnapshotReader(context)
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._fresh = asyncio.Condition()
        self._rendered: tuple[int, dict[str, str]] = (0, {})
        self.snapshot: PageSnapshot | None = None
        self.error = ""
        self.number = 0
        self.streams = 0
        self.closing = False

    async def refresh(self) -> None:
        """Read a snapshot if the newest is older than EVERY_SECONDS, for a page without a stream."""
        if self.snapshot is None or time.monotonic() - self.snapshot.at > EVERY_SECONDS:
            await self._read()

    def sections(self) -> dict[str, str]:
        """Section → HTML of the newest snapshot, rendered once for all readers."""
        if self.snapshot is not None and self._rendered[0] != self.number:
            self._rendered = self.number, render_sections(self.snapshot)
        return self._rendered[1]

    async def next(self, number: int) -> None:
        """Wait for a snapshot with a higher number, or for `close`."""
        async with self._fresh:
            await self._fresh.wait_for(lambda: self.number > number or self.closing)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Snapshots are read while a stream is open."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self.streams += 1
        self._opened.set()
        try:
            yield
        finally:
            self.streams -= 1

    async def close(self) -> None:
        """End the streams."""
        self.closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        async with self._fresh:
            self._fresh.notify_all()

    async def _run(self) -> None:
        took: deque[float] = deque(maxlen=LAST_READS)
        while True:
            began = time.monotonic()
            if self.streams:
                await self._read()
                took.append(time.monotonic() - began)
            try:
                await asyncio.wait_for(self._opened.wait(), pause(took))
            except TimeoutError:
                continue
            self._opened.clear()

    async def _read(self) -> None:
        try:
            self.snapshot = await self._context.run(self._reader.read)
            self.error = ""
        except FAILURES as err:
            self.error = one_line(err)
        async with self._fresh:
            self.number += 1
            self._fresh.notify_all()
