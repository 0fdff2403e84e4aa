"""Slots for concurrent repo fetches: a total for ordinary work, extra slots for urgent work, a limit per host.

Order: urgent work first; within a priority, hosts that hold no slot; then FIFO. A host at its limit does not block others.
If a host's queue is longer than the host can serve soon, the end of the queue is evicted (`QueueFull`).

While work waits for a slot, a transfer below the minimum speed (`steps.host_speed`) ends after 30 s with `TooSlow`, not counted
as an attempt, and its host is marked slow. Slow hosts share a fifth of the slots; their transfers end after five minutes, if
other hosts wait, with `TooSlow`, counted. A fifth of the slots is reserved for hosts that have already served a repo.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf

from steps.host_speed import HostSpeed, Transfer

KEPT_HOSTS = 20_000
EVICT_EVERY_SECONDS = 0.02  # paced: each eviction costs a transaction, and the repo returns later
SLOW_SHARE = 5  # slow hosts share one in five slots
CONFINED_SECONDS = 300.0  # time limit of a slow host's transfer while another host waits


class QueueFull(Exception):
    """The host's queue is longer than it can serve soon; retry after `seconds`."""

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(f"{host}: more repos wait than the host can serve soon")
        self.seconds = seconds


class TooSlow(Exception):
    """The transfer was ended because other repos wait. `counted`: it used up the time limit of slow hosts."""

    def __init__(self, host: str, speed: float, seconds: float, *, counted: bool) -> None:
        super().__init__(f"{host}: {speed:.0f} bytes per second while other repos wait")
        self.seconds = seconds
        self.counted = counted


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    host: str
    future: asyncio.Future[None]


class FetchSlots:
    """Slots for one event loop. `taken`: number in use."""

    def __init__(
        self,
        ordinary: int,
        urgent: int,
        per_host: int,
        queue_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._limits = {True: ordinary + urgent, False: ordinary}
        self._queues: dict[bool, list[_Waiter]] = {True: [], False: []}
        self._per_host = per_host
        self._queue_seconds = queue_seconds
        self._next_eviction = 0.0
        self._hosts: Counter[str] = Counter()
        self._speeds: dict[str, HostSpeed] = {}
        self._slow_slots = max(1, ordinary // SLOW_SHARE)  # shared by all slow hosts
        self._proven_slots = ordinary // SLOW_SHARE  # only for hosts that have served a repo
        self._transfers: dict[Transfer, asyncio.Timeout] = {}
        self._ended: dict[Transfer, TooSlow] = {}
        self.taken = 0

    def limit(self, *, urgent: bool) -> int:
        """Slots available to work of this priority."""
        return self._limits[urgent]

    def queued(self, *, urgent: bool) -> int:
        """Number of waiters of this priority whose host is at its limit."""
        return sum(self._blocked(waiter.host) for waiter in self._queues[urgent])

    @asynccontextmanager
    async def slot(self, host: str, *, urgent: bool) -> AsyncIterator[None]:
        """Hold one of the host's slots. Raises QueueFull."""
        if self._free(host, urgent=urgent):
            self._take(host)
        else:
            await self._wait(host, urgent=urgent)
        try:
            yield
        finally:
            self._release(host)

    @asynccontextmanager
    async def fetching(self, host: str) -> AsyncIterator[Transfer]:
        """Time one request to the host, for its queue limit and speed. Raises TooSlow."""
        speed, began = self._speed(host), self._clock()
        speed.request_began(began)
        transfer = Transfer(host, confined=speed.slow)
        try:
            async with asyncio.timeout(None) as deadline:
                self._transfers[transfer] = deadline
                yield transfer
            if not transfer.slow(self._clock()):
                speed.served()
        except TimeoutError:
            if transfer not in self._ended:
                raise
            raise self._ended[transfer] from None
        finally:
            self._ended.pop(transfer, None)
            del self._transfers[transfer]
            speed.request_ended(began, self._clock())

    def evict_overdue(self) -> None:
        """End transfers that are too slow, and evict the ends of queues that are too long for their hosts."""
        now = self._clock()
        self._end_slow_transfers(now)
        self._next_eviction = max(self._next_eviction, now - 1.0)
        limits = {host: self._speed(host).queue_limit(now) for host in self._hosts if self._full(host)}
        slow_left = 2 * self._slow_slots
        seen: Counter[str] = Counter()
        for urgent in (True, False):
            for waiter in self._queues[urgent]:
                speed = self._speeds.get(waiter.host)
                seen[waiter.host] += 1
                over = seen[waiter.host] > limits.get(waiter.host, inf)
                if speed is not None and speed.slow:
                    slow_left -= 1
                    over = over or slow_left < 0
                if over and self._next_eviction <= now:
                    waiter.future.set_exception(QueueFull(waiter.host, self._speed(waiter.host).delay(now)))
                    self._next_eviction += EVICT_EVERY_SECONDS
            self._queues[urgent] = [waiter for waiter in self._queues[urgent] if not waiter.future.done()]

    def _end_slow_transfers(self, now: float) -> None:
        """While work waits only for a slot, end the slowest transfers beyond the share of slow hosts."""
        slow = sorted((one for one in self._transfers if one.slow(now)), key=lambda one: one.speed(now))
        waiting = [waiter.host for queue in self._queues.values() for waiter in queue if not waiter.future.done()]
        if not slow or not waiting:
            return
        confined = sum(one.confined for one in self._transfers)
        loose = [one for one in slow if not one.confined]
        if any(not self._blocked(host) for host in waiting):
            allowed = min(self._slow_slots, self._limits[False] - 1)
            for transfer in loose[: max(0, len(loose) + confined - allowed)]:
                self._speed(transfer.host).ended_for_speed()
                self._end(transfer, now, counted=False)
        for transfer in slow:
            late = transfer.began is not None and now > transfer.began + CONFINED_SECONDS
            confines = transfer.confined or self._speed(transfer.host).slow
            if confines and late and any(host != transfer.host for host in waiting):
                self._end(transfer, now, counted=True)

    def _end(self, transfer: Transfer, now: float, *, counted: bool) -> None:
        if transfer not in self._ended:
            seconds = self._speed(transfer.host).delay(now)
            self._ended[transfer] = TooSlow(transfer.host, transfer.speed(now), seconds, counted=counted)
            self._transfers[transfer].reschedule(asyncio.get_running_loop().time())

    def _free(self, host: str, *, urgent: bool) -> bool:
        limit = self._limits[urgent]
        if self.taken >= limit or self._blocked(host):
            return False
        if self._speed(host).proven:
            return True
        unproven = sum(held for other, held in self._hosts.items() if not self._speed(other).proven)
        return unproven < limit - self._proven_slots

    def _blocked(self, host: str) -> bool:
        """Whether the host is at its limit, or is slow and slow hosts are at theirs."""
        if self._full(host):
            return True
        speed = self._speeds.get(host)
        if speed is None or not speed.slow:
            return False
        return sum(held for other, held in self._hosts.items() if self._speed(other).slow) >= self._slow_slots

    def _full(self, host: str) -> bool:
        held = self._hosts[host]
        return held > 0 and held >= self._speed(host).slots(self._clock())

    def _take(self, host: str) -> None:
        self.taken += 1
        self._hosts[host] += 1

    async def _wait(self, host: str, *, urgent: bool) -> None:
        waiter = _Waiter(host, asyncio.get_running_loop().create_future())
        self._queues[urgent].append(waiter)
        try:
            await waiter.future  # the releasing task has already counted the slot as taken
        except asyncio.CancelledError:
            if waiter in self._queues[urgent]:
                self._queues[urgent].remove(waiter)
            elif waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._release(host)  # the slot was granted at the moment of the cancellation
            raise

    def _release(self, host: str) -> None:
        self.taken -= 1
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        for urgent in (True, False):
            queue = self._queues[urgent] = [waiter for waiter in self._queues[urgent] if not waiter.future.done()]
            # hosts that hold no slot go first, so that hosts with many repos do not take all slots
            for waiter in sorted(queue, key=lambda one: self._hosts[one.host] > 0):
                if self.taken >= self._limits[urgent]:
                    break
                if self._free(waiter.host, urgent=urgent):
                    queue.remove(waiter)
                    self._take(waiter.host)
                    waiter.future.set_result(None)

    def _speed(self, host: str) -> HostSpeed:
        speed = self._speeds.get(host)
        if speed is None:
            if len(self._speeds) >= KEPT_HOSTS:
                self._forget()
            speed = self._speeds[host] = HostSpeed(self._per_host, self._queue_seconds)
        return speed

    def _forget(self) -> None:
        """Drop idle hosts that are not slow, then the oldest idle slow ones."""
        self._speeds = {host: one for host, one in self._speeds.items() if one.slow or not one.idle}
        for host in [host for host, one in self._speeds.items() if one.idle][: len(self._speeds) - KEPT_HOSTS // 2]:
            del self._speeds[host]
