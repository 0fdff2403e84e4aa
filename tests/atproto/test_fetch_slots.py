"""Hosts that send a byte now and then: effects on other hosts and on themselves. In virtual time, without a network."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from connectors.atproto.fetch_slots import CONFINED_SECONDS, FetchSlots, QueueFull, TooSlow
from steps.host_speed import LEAST_BYTES_PER_SECOND, SLOW_SECONDS, HostSpeed, Transfer

DRIP = (0.2, 5.0)  # bytes a second, and after how many seconds each part comes


@dataclass(slots=True)
class Worker:
    """Repos as `flows/backfill/pipeline.py` treats them: (host, size, bytes a second) each, again and again until fetched."""

    slots: FetchSlots
    done: dict[str, float] = field(default_factory=dict)
    ended: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    most_at_once: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    at_once: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    async def repo(self, name: str, host: str, size: int, speed: float) -> None:
        now = asyncio.get_running_loop().time
        while name not in self.done and self.ended[name].count(True) < 5:
            try:
                async with self.slots.slot(host, urgent=False), self.slots.fetching(host) as transfer:
                    self.at_once[host] += 1
                    self.most_at_once[host] = max(self.most_at_once[host], self.at_once[host])
                    try:
                        await self._fetch(transfer, size, speed)
                    finally:
                        self.at_once[host] -= 1
                self.done[name] = now() - 1000.0
            except TooSlow as err:
                self.ended[name].append(err.counted)
                await asyncio.sleep(err.seconds)
            except QueueFull as err:
                await asyncio.sleep(err.seconds)

    async def _fetch(self, transfer: Transfer, size: int, speed: float) -> None:
        transfer.request_sent(asyncio.get_running_loop().time())
        step = max(0.05, min(5.0, size / speed))
        while transfer.received < size:
            await asyncio.sleep(step)
            transfer.received = min(size, transfer.received + max(1, int(speed * step)))

    async def evicting(self) -> None:
        while True:
            self.slots.evict_overdue()
            await asyncio.sleep(0.2)


async def played(worker: Worker, seconds: float, *repos: tuple[str, str, int, float]) -> None:
    tasks = [asyncio.create_task(worker.repo(*one)) for one in repos]
    ticking = asyncio.create_task(worker.evicting())
    await asyncio.wait(tasks, timeout=seconds)
    for task in (*tasks, ticking):
        task.cancel()
    await asyncio.gather(*tasks, ticking, return_exceptions=True)
    assert worker.slots.taken == 0


def dripping(hosts: int, repos: int) -> list[tuple[str, str, int, float]]:
    return [(f"drip{host}/{n}", f"drip{host}", 100_000, 0.2) for host in range(hosts) for n in range(repos)]


def ordinary(hosts: int, repos: int) -> list[tuple[str, str, int, float]]:
    return [(f"good{host}/{n}", f"good{host}", 200_000, 400_000.0) for host in range(hosts) for n in range(repos)]


@pytest.mark.parametrize("repos_per_host", [1, 5])
def test_ten_dripping_hosts_delay_the_others_by_a_minute_at_most(timeless: asyncio.Runner, repos_per_host: int) -> None:
    """H3, B3: before, ten transfers of an hour each had every permit, and the others waited as long."""
    worker = Worker(FetchSlots(10, 2, 5, 30.0, timeless.get_loop().time))
    good = ordinary(5, 4)
    timeless.run(played(worker, 200, *dripping(10, repos_per_host), *good))
    waited = [worker.done.get(name, 999.0) for name, *_ in good]
    assert max(waited) < (40 if repos_per_host == 1 else 100), waited
    assert not any(any(counted) for counted in worker.ended.values())
    assert max(map(len, worker.ended.values())) == 1, "uncounted once, and then its host is slow"


def test_proven_hosts_keep_a_fifth_of_the_permits(timeless: asyncio.Runner) -> None:
    """H3: however many unknown hosts drip at once, those that work go on within a moment."""
    worker = Worker(FetchSlots(10, 2, 5, 30.0, timeless.get_loop().time))

    async def run() -> None:
        await played(worker, 20, *[(f"first{n}", f"good{n}", 100, 1e6) for n in range(5)])
        await played(worker, 20, *dripping(60, 1), *ordinary(5, 4))

    timeless.run(run())
    assert len([name for name in worker.done if name.startswith("good")]) == 20


def test_slow_hosts_share_few_permits_and_their_transfers_end_counted(timeless: asyncio.Runner) -> None:
    """G5: no transfer is deferred without end: on a permit of slow hosts it has its time, and then it counts."""
    worker = Worker(FetchSlots(10, 2, 5, 30.0, timeless.get_loop().time))

    async def run() -> None:
        good = [(f"g{n}", "good", 2_000_000, 100_000.0) for n in range(400)]
        await played(worker, 3000, *dripping(6, 2), *good)

    timeless.run(run())
    counted = [one for ends in worker.ended.values() for one in ends]
    assert counted.count(True) >= 8
    assert counted.count(False) <= 10, "once for each permit at first"
    assert max(ends.count(False) for ends in worker.ended.values()) == 1
    assert worker.most_at_once["drip5"] <= 5


def test_a_slow_transfer_continues_while_no_repo_waits(timeless: asyncio.Runner) -> None:
    """A slow host is no fault: where permits are free, its repos are fetched."""
    worker = Worker(FetchSlots(4, 1, 2, 30.0, timeless.get_loop().time))
    timeless.run(played(worker, 2000, *[(f"slow/{n}", "slow", 1_000_000, 1000.0) for n in range(2)], *ordinary(2, 5)))
    assert {"slow/0", "slow/1"} <= worker.done.keys()
    assert not any(worker.ended.values())


def test_a_burst_does_not_hide_later_dripping() -> None:
    """The speed is that of the last half or whole minute."""
    transfer = Transfer("host")
    assert not transfer.slow(10_000.0), "the host was not asked yet"
    transfer.request_sent(100.0)
    transfer.received = 100 * LEAST_BYTES_PER_SECOND
    for now in range(101, 160):
        assert not transfer.slow(now)
    assert transfer.slow(160.0)
    transfer.received += 60 * LEAST_BYTES_PER_SECOND
    assert not transfer.slow(170.0), "it is quick again"


def test_a_host_is_slow_until_it_has_served_well_twice_as_often_as_before() -> None:
    """A host that serves one repo well for each that it drips is slow for ever longer."""
    pace = HostSpeed(5, 30.0)
    needed = []
    for _ in range(12):
        pace.ended_for_speed()
        pace.ended_for_speed()  # two transfers at once are one time
        needed.append(0)
        assert pace.slots(0.0) == 1
        while pace.slow:
            pace.served()
            needed[-1] += 1
    assert needed == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024]


def test_constants_have_the_values_of_the_limits_page() -> None:
    assert (SLOW_SECONDS, CONFINED_SECONDS, LEAST_BYTES_PER_SECOND) == (30.0, 300.0, 16 * 1024)
