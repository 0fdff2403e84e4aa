"""Permits to fetch at once: a number for everybody, some more that only urgent work may take, and a share for every host.

Urgent work goes first; within its kind, hosts that hold no permit, and then who comes first. Work that waits for a host which
has its share is passed by the others, and a line that a slow host would not get through soon is shortened (`LineTooLong`).

No host keeps the others waiting by being slow. While work waits for a permit, a transfer below the least speed
(`steps.host_speed`) is ended after 30 s: `TooSlow`, uncounted. Its host is slow from then on: slow hosts share a fifth of the permits,
where a transfer has five minutes if others wait, and then is `TooSlow`, counted. Hosts that have served nothing yet cannot
take that fifth from hosts that have.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf

from steps.host_speed import HostPace, Transfer

KEPT_HOSTS = 20_000
AWAY_SECONDS = 0.02  # one after the other: each is a transaction, and comes back
SLOW_SHARE = 5  # slow hosts share one permit of so many
CONFINED_SECONDS = 300.0  # what one of their transfers has while another waits


class LineTooLong(Exception):
    """Too many wait for this host; worth another try after `seconds`."""

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(f"{host}: more repos wait for it than it answers soon")
        self.seconds = seconds


class TooSlow(Exception):
    """The transfer was ended for others that wait. `counted`: it had its time on a permit of slow hosts."""

    def __init__(self, host: str, speed: float, seconds: float, *, counted: bool) -> None:
        super().__init__(f"{host}: {speed:.0f} bytes a second, and others wait")
        self.seconds = seconds
        self.counted = counted


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    host: str
    future: asyncio.Future[None]


class Places:
    """Used in one event loop. `taken`: permits that are held."""

    def __init__(self, everybody: int, urgent: int, per_host: int, line_seconds: float) -> None:
        self._limits = {True: everybody + urgent, False: everybody}
        self._queues: dict[bool, list[_Waiter]] = {True: [], False: []}
        self._per_host = per_host
        self._line_seconds = line_seconds
        self._next_away = 0.0  # time.monotonic
        self._hosts: Counter[str] = Counter()
        self._paces: dict[str, HostPace] = {}
        self._for_slow = max(1, everybody // SLOW_SHARE)
        self._for_proven = everybody // SLOW_SHARE
        self._transfers: dict[Transfer, asyncio.Timeout] = {}
        self._ended: dict[Transfer, TooSlow] = {}
        self.taken = 0

    def limit(self, *, urgent: bool) -> int:
        """Permits that such work can have."""
        return self._limits[urgent]

    def in_lines(self, *, urgent: bool) -> int:
        """How many of such work wait for their host, whatever permits are free."""
        return sum(self._blocked(waiter.host) for waiter in self._queues[urgent])

    @asynccontextmanager
    async def place(self, host: str, *, urgent: bool) -> AsyncIterator[None]:
        """Hold one of the host's permits. Raises LineTooLong."""
        if self._free(host, urgent=urgent):
            self._take(host)
        else:
            await self._wait(host, urgent=urgent)
        try:
            yield
        finally:
            self._leave(host)

    @asynccontextmanager
    async def fetching(self, host: str) -> AsyncIterator[Transfer]:
        """A request to the host: how long it takes decides how many may wait for the next one. Raises TooSlow."""
        pace, began = self._pace(host), time.monotonic()
        pace.began(began)
        transfer = Transfer(host, confined=pace.slow)
        try:
            async with asyncio.timeout(None) as deadline:
                self._transfers[transfer] = deadline
                yield transfer
            if not transfer.slow(time.monotonic()):
                pace.served()
        except TimeoutError:
            if transfer not in self._ended:
                raise
            raise self._ended[transfer] from None
        finally:
            self._ended.pop(transfer, None)
            del self._transfers[transfer]
            pace.ended(began, time.monotonic())

    def shorten(self) -> None:
        """Defer whatever waits for a host that would not come to it soon, the last of the line first; end what is too slow."""
        now = time.monotonic()
        self._relieve(now)
        self._next_away = max(self._next_away, now - 1.0)
        lines = {host: self._pace(host).line(now) for host in self._hosts if self._full(host)}
        slow_line = 2 * self._for_slow
        seen: Counter[str] = Counter()
        for urgent in (True, False):
            for waiter in self._queues[urgent]:
                pace = self._paces.get(waiter.host)
                seen[waiter.host] += 1
                over = seen[waiter.host] > lines.get(waiter.host, inf)
                if pace is not None and pace.slow:
                    slow_line -= 1
                    over = over or slow_line < 0
                if over and self._next_away <= now:
                    waiter.future.set_exception(LineTooLong(waiter.host, self._pace(waiter.host).away(now)))
                    self._next_away += AWAY_SECONDS
            self._queues[urgent] = [waiter for waiter in self._queues[urgent] if not waiter.future.done()]

    def _relieve(self, now: float) -> None:
        """End the slowest transfers that are more than the slow ones' share, while work waits that lacks nothing but a permit."""
        slow = sorted((one for one in self._transfers if one.slow(now)), key=lambda one: one.speed(now))
        waiting = [waiter.host for queue in self._queues.values() for waiter in queue if not waiter.future.done()]
        if not slow or not waiting:
            return
        confined = sum(one.confined for one in self._transfers)
        loose = [one for one in slow if not one.confined]
        if any(not self._blocked(host) for host in waiting):
            allowed = min(self._for_slow, self._limits[False] - 1)
            for transfer in loose[: max(0, len(loose) + confined - allowed)]:
                self._pace(transfer.host).struck()
                self._end(transfer, now, counted=False)
        for transfer in slow:
            late = transfer.began is not None and now > transfer.began + CONFINED_SECONDS
            confines = transfer.confined or self._pace(transfer.host).slow
            if confines and late and any(host != transfer.host for host in waiting):
                self._end(transfer, now, counted=True)

    def _end(self, transfer: Transfer, now: float, *, counted: bool) -> None:
        if transfer not in self._ended:
            seconds = self._pace(transfer.host).away(now)
            self._ended[transfer] = TooSlow(transfer.host, transfer.speed(now), seconds, counted=counted)
            self._transfers[transfer].reschedule(asyncio.get_running_loop().time())

    def _free(self, host: str, *, urgent: bool) -> bool:
        limit = self._limits[urgent]
        if self.taken >= limit or self._blocked(host):
            return False
        if self._pace(host).proven:
            return True
        unproven = sum(held for other, held in self._hosts.items() if not self._pace(other).proven)
        return unproven < limit - self._for_proven

    def _blocked(self, host: str) -> bool:
        """Whether the host has its share, or is slow and slow hosts have theirs."""
        if self._full(host):
            return True
        pace = self._paces.get(host)
        if pace is None or not pace.slow:
            return False
        return sum(held for other, held in self._hosts.items() if self._pace(other).slow) >= self._for_slow

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
            await waiter.future  # who hands a permit over counts it as taken
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
            queue = self._queues[urgent] = [waiter for waiter in self._queues[urgent] if not waiter.future.done()]
            # hosts that hold nothing go first, so that some with many repos do not fill all permits
            for waiter in sorted(queue, key=lambda one: self._hosts[one.host] > 0):
                if self.taken >= self._limits[urgent]:
                    break
                if self._free(waiter.host, urgent=urgent):
                    queue.remove(waiter)
                    self._take(waiter.host)
                    waiter.future.set_result(None)

    def _pace(self, host: str) -> HostPace:
        pace = self._paces.get(host)
        if pace is None:
            if len(self._paces) >= KEPT_HOSTS:
                self._forget()
            pace = self._paces[host] = HostPace(self._per_host, self._line_seconds)
        return pace

    def _forget(self) -> None:
        """Hosts that nothing is known of but their pace, and then the oldest of the slow ones."""
        self._paces = {host: one for host, one in self._paces.items() if one.slow or not one.idle}
        for host in [host for host, one in self._paces.items() if one.idle][: len(self._paces) - KEPT_HOSTS // 2]:
            del self._paces[host]
