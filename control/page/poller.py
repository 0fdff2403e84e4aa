"""One snapshot for all open pages: `Poller` reads snapshots while a stream is open, keeps their history, wakes the streams.

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
from control.status import END_PHASES
from schemas.errors import OperatorError

EVERY_SECONDS = 2.0
SHARE = 10.0
LAST_READS = 3
HISTORY = 150
FORGET_SECONDS = 60.0
FAILURES = (psycopg.Error, PoolTimeout, LogUnavailable, OperatorError, TooManyCalls)


class History:
    """`points`: figure → (monotonic seconds, value) of the newest HISTORY snapshots."""

    def __init__(self) -> None:
        self.points: dict[str, deque[tuple[float, float]]] = {}
        self._before: PageSnapshot | None = None

    def add(self, new: PageSnapshot) -> None:
        """Append a snapshot's figures. Rates need the snapshot before; a pause of FORGET_SECONDS clears everything."""
        old, self._before = self._before, new
        if old is not None and new.at - old.at > FORGET_SECONDS:
            self.points.clear()
            old = None
        if old is not None and new.at > old.at:
            for name, now, then in zip(("records", "events", "repos"), _totals(new), _totals(old), strict=True):
                self._add(name, new.at, max(0.0, (now - then) / (new.at - old.at)))
        for (_, topic), lag in new.status.lag.items():
            self._add(f"lag {topic}", new.at, float(lag))

    def _add(self, name: str, at: float, value: float) -> None:
        self.points.setdefault(name, deque(maxlen=HISTORY)).append((at, value))


def _totals(snapshot: PageSnapshot) -> tuple[int, int, int]:
    status = snapshot.status
    return status.records, status.events, sum(status.repos[phase] for phase in END_PHASES)


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
        self.history = History()
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
            self._rendered = self.number, render_sections(self.snapshot, self.history.points)
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
            self.history.add(self.snapshot)
            self.error = ""
        except FAILURES as err:
            self.error = one_line(err)
        async with self._fresh:
            self.number += 1
            self._fresh.notify_all()
