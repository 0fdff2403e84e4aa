"""Places to fetch at once: a number for everybody, some more that only urgent work may take, and a share for every host.

Urgent work goes first; within its kind, who comes first. Who waits for a host that has its share does not keep others back:
they go past, and a line that a slow host would not get through soon is shortened (`LineTooLong`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from math import inf

from steps.pace import HostPace

KEPT_HOSTS = 20_000
AWAY_SECONDS = 0.02  # one after the other: each is a transaction, and comes back


class LineTooLong(Exception):
    """Too many wait for this host; worth another try after `seconds`."""

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(f"{host}: more repos wait for it than it answers soon")
        self.seconds = seconds


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    host: str
    future: asyncio.Future[None]


class Places:
    """Used in one event loop. `taken`: places that are held."""

    def __init__(self, everybody: int, urgent: int, per_host: int, line_seconds: float) -> None:
        self._limits = {True: everybody + urgent, False: everybody}
        self._queues: dict[bool, list[_Waiter]] = {True: [], False: []}
        self._per_host = per_host
        self._line_seconds = line_seconds
        self._next_away = 0.0  # time.monotonic
        self._hosts: Counter[str] = Counter()
        self._paces: dict[str, HostPace] = {}
        self.taken = 0

    def limit(self, *, urgent: bool) -> int:
        """Places that such work can have."""
        return self._limits[urgent]

    def in_lines(self, *, urgent: bool) -> int:
        """How many of such work wait for a host that has its share, whatever places are free."""
        return sum(self._full(waiter.host) for waiter in self._queues[urgent])

    @asynccontextmanager
    async def place(self, host: str, *, urgent: bool) -> AsyncIterator[None]:
        """Hold one of the host's places. Raises LineTooLong."""
        if self._free(host, urgent=urgent):
            self._take(host)
        else:
            await self._wait(host, urgent=urgent)
        try:
            yield
        finally:
            self._leave(host)

    @contextmanager
    def fetching(self, host: str) -> Iterator[None]:
        """A request to the host: how long it takes decides how many may wait for the next one."""
        pace, began = self._pace(host), time.monotonic()
        pace.began(began)
        try:
            yield
        finally:
            pace.ended(began, time.monotonic())

    def shorten(self) -> None:
        """Send away whoever waits for a host that would not come to it soon; the last of the line first."""
        now = time.monotonic()
        self._next_away = max(self._next_away, now - 1.0)
        lines = {host: self._pace(host).line(now) for host in self._hosts if self._full(host)}
        seen: Counter[str] = Counter()
        for urgent in (True, False):
            for waiter in self._queues[urgent]:
                seen[waiter.host] += 1
                if seen[waiter.host] > lines.get(waiter.host, inf) and self._next_away <= now:
                    waiter.future.set_exception(LineTooLong(waiter.host, self._paces[waiter.host].away(now)))
                    self._next_away += AWAY_SECONDS
            self._queues[urgent] = [waiter for waiter in self._queues[urgent] if not waiter.future.done()]

    def _free(self, host: str, *, urgent: bool) -> bool:
        return self.taken < self._limits[urgent] and not self._full(host)

    def _full(self, host: str) -> bool:
        held = self._hosts[host]
        return held > 0 and held >= self._pace(host).share(time.monotonic())

    def _take(self, host: str) -> None:
        self.taken += 1
        self._hosts[host] += 1

    async def _wait(self, host: str, *, urgent: bool) -> None:
        waiter = _Waiter(host, asyncio.get_running_loop().create_future())
        self._queues[urgent].append(waiter)
        try:
            await waiter.future  # whoever hands a place over counts it as taken
        except asyncio.CancelledError:
            if waiter in self._queues[urgent]:
                self._queues[urgent].remove(waiter)
            elif waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._leave(host)  # it was handed over in the same moment
            raise

    def _leave(self, host: str) -> None:
        self.taken -= 1
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        for urgent in (True, False):
            queue = self._queues[urgent]
            at = 0
            while at < len(queue) and self.taken < self._limits[urgent]:
                if queue[at].future.done():
                    del queue[at]
                elif self._free(queue[at].host, urgent=urgent):
                    waiter = queue.pop(at)
                    self._take(waiter.host)
                    waiter.future.set_result(None)
                else:
                    at += 1

    def _pace(self, host: str) -> HostPace:
        pace = self._paces.get(host)
        if pace is None:
            if len(self._paces) >= KEPT_HOSTS:
                self._paces = {name: one for name, one in self._paces.items() if not one.idle}
            pace = self._paces[host] = HostPace(self._per_host, self._line_seconds)
        return pace
