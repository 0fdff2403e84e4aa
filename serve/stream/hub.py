"""What all streams of the process share: the ring and its follower, replays, the dictionary. `Hub.add_to(app)` ties it to the loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from aiohttp import web

from connectors.runtime.health import Health
from schemas.settings import Settings
from serve.guard import XrpcError
from serve.stream.dictionary import Dictionary
from serve.stream.follower import Follower
from serve.stream.marks import StoredMark, log_range, opened
from serve.stream.ring import Ring
from steps.sequence import LogMark

REPLAYS = 16
"""Clients that read the log themselves, each by a client of the broker; the others wait."""
PLACE_SECONDS = 10.0
"""Wait for one of these places, and for the log to be read when the process has started."""
STOP_SECONDS = 3.0

T = TypeVar("T")


class ReplayStart(NamedTuple):
    """Where a replay begins. `clamped`: events from the cursor up to here are lost."""

    start: StoredMark
    clamped: bool


class Hub:
    """One per process. Used in the event loop, but for `check`."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self.settings = settings
        self._health = health
        self.ring = Ring()
        self.dictionary = Dictionary()
        self.closing = False
        self._threads = ThreadPoolExecutor(REPLAYS, thread_name_prefix="replay")
        self._places = asyncio.Semaphore(REPLAYS)
        self._follower: Follower | None = None

    def add_to(self, app: web.Application) -> None:
        """Start with the application, and end its streams with it."""
        app[HUB] = self
        app.on_startup.append(self._start)
        app.on_shutdown.append(self._stop)

    def check(self) -> None:
        """Raise the error that ended the follower."""
        if self._follower is not None:
            self._follower.worker.check()

    async def _start(self, _: web.Application) -> None:
        self._follower = Follower(self.settings, self._health, self.ring, asyncio.get_running_loop())
        self._follower.worker.start()

    async def _stop(self, _: web.Application) -> None:
        self.closing = True
        self.ring.wake()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._follower is not None:
            await asyncio.to_thread(self._follower.worker.stop, STOP_SECONDS)

    async def newest(self) -> LogMark:
        """The newest mark, when the log is being read. Raises XrpcError."""
        until = time.monotonic() + PLACE_SECONDS
        while self.ring.newest is None:
            if time.monotonic() > until or self.closing:
                raise XrpcError("NotEnoughResources", "the log is not read yet; retry in a moment", 503)
            await self.ring.changed(PLACE_SECONDS)
        return self.ring.newest

    async def run(self, work: Callable[[], T]) -> T:
        """Call a blocking function of a replay."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for a replay. Raises XrpcError."""
        try:
            async with asyncio.timeout(PLACE_SECONDS):
                await self._places.acquire()
        except TimeoutError as err:
            raise XrpcError("NotEnoughResources", "too many clients replay; retry in a moment", 503) from err
        try:
            yield
        finally:
            self._places.release()

    def find(self, is_before: Callable[[LogMark], bool]) -> ReplayStart | None:
        """The last mark for which this holds, or the first one that the log can be read from. None: the log has no mark.

        It blocks. Raises LogUnavailable.
        """
        starts, _ = log_range(self.settings)
        with opened(self.settings) as marks:
            found = marks.last(is_before)
            if found is not None and all(map(int.__ge__, found.mark.ends, starts)):
                return ReplayStart(found, False)
            floor = marks.floor(starts)
        return None if floor is None else ReplayStart(floor, True)


HUB = web.AppKey("hub", Hub)
