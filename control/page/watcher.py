"""One look for all who watch: `Watcher` takes looks while somebody does, keeps the last minutes, and wakes the streams.

Lives in the API's loop; looks run in the context's threads. A look takes at most a tenth of the time: on a large database
they come less often, but not because of one that was slow. What fails is told to those who watch, and tried again.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg_pool import PoolTimeout

from connectors.kafka.log import LogUnavailable
from connectors.runtime.errors import one_line
from control.api.context import Context
from control.api.errors import Busy
from control.page.look import Look, Looker
from schemas.errors import OperatorError

EVERY_SECONDS = 2.0
SHARE = 10.0
LAST_LOOKS = 3
HISTORY = 150
FORGET_SECONDS = 60.0
FAILURES = (psycopg.Error, PoolTimeout, LogUnavailable, OperatorError, Busy)

logger = logging.getLogger("page")


@dataclass(slots=True)
class Course:
    """Figures of the last minutes: name → (monotonic time, value)."""

    points: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    before: Look | None = None

    def add(self, look: Look) -> None:
        """Append a look's figures. Rates need the look before it; after a pause everything begins anew."""
        before, self.before = self.before, look
        if before is not None and look.at - before.at > FORGET_SECONDS:
            self.points.clear()
            before = None
        status = look.status
        if before is not None and look.at > before.at:
            seconds = look.at - before.at
            self._add("records", look.at, max(0.0, (status.records - before.status.records) / seconds))
            self._add("events", look.at, max(0.0, (status.events - before.status.events) / seconds))
            ended = _ended(look) - _ended(before)
            self._add("repos", look.at, max(0.0, ended / seconds))
        for (_, topic), lag in status.lag.items():
            self._add(f"lag {topic}", look.at, float(lag))

    def _add(self, name: str, at: float, value: float) -> None:
        self.points.setdefault(name, deque(maxlen=HISTORY)).append((at, value))


def _ended(look: Look) -> int:
    return sum(look.status.repos[phase] for phase in ("sync", "unavailable", "failed"))


def pause(took: Iterable[float]) -> float:
    """Seconds until the next look, after looks that took so long."""
    return max(EVERY_SECONDS, SHARE * min(took, default=0.0))


class Watcher:
    """The newest look, its course, and what keeps looks from being taken."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._looker = Looker(context)
        self._task: asyncio.Task[None] | None = None
        self._watching = 0
        self._asked = asyncio.Event()
        self._fresh = asyncio.Condition()
        self.course = Course()
        self.look: Look | None = None
        self.trouble = ""
        self.number = 0
        self.closing = False

    async def now(self) -> None:
        """A look that is not older than one interval, for a page without a stream."""
        if self.look is None or time.monotonic() - self.look.at > EVERY_SECONDS:
            await self._take()

    async def next(self, number: int) -> None:
        """Wait for a look after this one, or the end."""
        async with self._fresh:
            await self._fresh.wait_for(lambda: self.number > number or self.closing)

    @property
    def watched(self) -> int:
        """How many watch."""
        return self._watching

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks are taken while somebody is in here."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._watching += 1
        self._asked.set()
        try:
            yield
        finally:
            self._watching -= 1

    def hurry(self) -> None:
        """Somebody changed something: look at once."""
        self._asked.set()

    async def close(self) -> None:
        """End the streams and the looks."""
        self.closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        async with self._fresh:
            self._fresh.notify_all()

    async def _run(self) -> None:
        took: deque[float] = deque(maxlen=LAST_LOOKS)
        while True:
            began = time.monotonic()
            if self._watching:
                await self._take()
                took.append(time.monotonic() - began)
            try:
                await asyncio.wait_for(self._asked.wait(), pause(took))
            except TimeoutError:
                continue
            self._asked.clear()

    async def _take(self) -> None:
        try:
            self.look = await self._context.run(self._looker.look)
            self.course.add(self.look)
            self.trouble = ""
        except FAILURES as err:
            self.trouble = one_line(err)
        async with self._fresh:
            self.number += 1
            self._fresh.notify_all()
