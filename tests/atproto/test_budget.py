"""The request budget of a host: what the host counts never exceeds the limit, however many workers there are."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.atproto.rate_budget import BURST_SHARE, HostBudget, HostPaused, requests_allowed
from schemas.settings import Settings
from steps.retry import FailureReason
from tests.support.in_process.own_loop import OwnLoop

HOST, OTHER_HOST = "http://pds.test", "http://other.test"
SPAWN = multiprocessing.get_context("spawn")


def settings(database: str, **given: object) -> Settings:
    return Settings(**({"database": database, "pds_requests": 60, "host_window_seconds": 3.0} | given))


def run_worker(
    dumped: str, host: str, seconds: float, least: int, callers: int, out: multiprocessing.Queue[list[float]]
) -> None:
    """A process that asks as often as it may, so long and, where the machine is slow, until it got so many."""

    async def main() -> list[float]:
        budget = HostBudget(Settings(**json.loads(dumped)))
        sent: list[float] = []

        async def ask() -> None:
            while True:
                try:
                    await budget.acquire(host)
                except HostPaused as paused:
                    await asyncio.sleep(min(paused.seconds, 1.0))
                else:
                    sent.append(time.time())

        tasks = [asyncio.create_task(ask()) for _ in range(callers)]
        begin = time.monotonic()
        while time.monotonic() < begin + seconds or (len(sent) < least and time.monotonic() < begin + 90):
            done, _ = await asyncio.wait(tasks, timeout=0.5, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        for task in tasks:
            task.cancel()
        await budget.close()
        return sent

    out.put(asyncio.run(main()))


def most_in_window(times: list[float], window: float) -> int:
    times = sorted(times)
    most = start = 0
    for end, at in enumerate(times):
        while times[start] < at - window:
            start += 1
        most = max(most, end - start + 1)
    return most


@pytest.mark.parametrize("limit", [1, 7, 60])
def test_two_workers_never_exceed_the_limit_in_any_window(database: str, limit: int) -> None:
    """The shared host budget: requests of both workers, in every sliding window, at most the limit; and most of it is used."""
    own, given = OwnLoop(database, step_seconds=0.0), settings(database, pds_requests=limit)
    clock = own.environment.clock
    sent: list[list[float]] = [[], []]

    async def ask(budget: HostBudget, times: list[float]) -> None:
        while True:
            try:
                await budget.acquire(HOST)
            except HostPaused as paused:
                await asyncio.sleep(min(paused.seconds, 1.0))
            else:
                times.append(clock())
                await asyncio.sleep(0.001)

    async def main() -> None:
        budgets = [HostBudget(given, clock) for _ in sent]
        callers = [ask(budget, times) for budget, times in zip(budgets, sent, strict=True) for _ in range(8)]
        tasks = [asyncio.create_task(caller) for caller in callers]
        await asyncio.wait(tasks, timeout=20.0 + 40.0 / limit, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended
        for budget in budgets:
            await budget.close()

    own.run(main())
    own.close()
    assert limit / 2 < most_in_window(sent[0] + sent[1], given.tuning.host_window_seconds) <= limit


def test_two_processes_never_exceed_the_limit_in_any_window(database: str) -> None:
    """As above, with the real clocks of two processes."""
    limit = 60
    given = settings(database, pds_requests=limit)
    dumped = given.model_dump_json(include=given.model_fields_set)
    out: multiprocessing.Queue[list[float]] = SPAWN.Queue()
    share = limit // 4 + 1
    workers = [SPAWN.Process(target=run_worker, args=(dumped, HOST, 6.0, share, 8, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    sent = [out.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert limit / 2 < most_in_window(sent[0] + sent[1], given.tuning.host_window_seconds) <= limit
    assert all(len(one) >= share for one in sent), "both get their share"


def host_row(database: str) -> dict[str, object]:
    with psycopg.connect(database, row_factory=psycopg.rows.dict_row) as db:
        return db.execute("select * from sluice.host where host = %s", (HOST,)).fetchone() or {}


def test_a_pause_holds_for_every_worker_and_ends_by_itself(database: str) -> None:
    """R3: the other worker learns it from the host's row."""

    async def main() -> None:
        one, other, third = (HostBudget(settings(database)) for _ in range(3))
        await one.acquire(HOST)
        await one.pause(HOST, 600.0, "429")
        await one.pause(HOST, 0.1, "shorter")  # does not end the longer one
        for budget in (one, other):
            with pytest.raises(HostPaused) as paused:
                await budget.acquire(HOST)
            assert paused.value.reason is FailureReason.HOST_PAUSED
            assert 300 < paused.value.seconds <= 600
        started = time.monotonic()
        await one.pause(OTHER_HOST, 0.3, "429")
        while True:
            try:
                await third.acquire(OTHER_HOST)
                break
            except HostPaused as again:
                await asyncio.sleep(again.seconds)
        assert time.monotonic() - started >= 0.3
        for budget in (one, other, third):
            await budget.close()

    asyncio.run(main())


def test_the_hosts_headers_lower_the_budget_and_never_raise_it(database: str) -> None:
    async def main() -> None:
        budget = HostBudget(settings(database))
        await budget.acquire(HOST)
        await budget.apply_headers(
            HOST, {"RateLimit-Limit": "20", "RateLimit-Policy": "20;w=3", "RateLimit-Remaining": "19"}
        )
        assert host_row(database)["request_limit"] == 20
        await budget.apply_headers(HOST, {"RateLimit-Limit": "900000"})
        assert host_row(database)["request_limit"] == 60
        await budget.apply_headers(HOST, {"RateLimit-Limit": "60", "RateLimit-Remaining": "0"})
        assert float(str(host_row(database)["tokens"])) <= 0
        await budget.close()

    asyncio.run(main())


def test_a_used_up_budget_is_reported_instead_of_waited_for(database: str) -> None:
    """One host does not hold a worker's slots for minutes."""

    async def main() -> None:
        budget = HostBudget(settings(database, pds_requests=1, host_window_seconds=300.0))
        await budget.acquire(HOST)
        waiting = [asyncio.create_task(budget.acquire(HOST)) for _ in range(3)]
        (first, *_), _ = await asyncio.wait(waiting, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        refused = first.exception()
        assert isinstance(refused, HostPaused)
        assert refused.reason is FailureReason.HOST_BUSY
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await budget.close()

    asyncio.run(main())


def test_failures_are_counted_in_the_hosts_row(database: str) -> None:
    async def main() -> None:
        budget = HostBudget(settings(database))
        await budget.record_failure(HOST, "it was down")
        await budget.record_failure(HOST, "it was down again")
        row = host_row(database)
        assert (row["failures"], row["consecutive_failures"], row["last_error"]) == (2, 2, "it was down again")
        await budget.record_served(HOST)
        row = host_row(database)
        assert (row["failures"], row["consecutive_failures"]) == (2, 0)
        await budget.close()

    asyncio.run(main())


@given(st.dictionaries(st.sampled_from(["RateLimit-Limit", "RateLimit-Policy"]), st.text(max_size=30)))
def test_headers_are_never_trusted_to_be_readable(headers: dict[str, str]) -> None:
    """G9."""
    allowed = requests_allowed(headers, 300.0)
    assert allowed is None or allowed >= 1


def test_a_longer_window_of_the_host_is_scaled_to_ours() -> None:
    assert requests_allowed({"RateLimit-Limit": "6000", "RateLimit-Policy": "6000;w=3600"}, 300.0) == 500
    assert requests_allowed({"RateLimit-Limit": "3000", "RateLimit-Policy": "3000;w=300"}, 300.0) == 3000
    assert requests_allowed({"RateLimit-Limit": "100", "RateLimit-Policy": "100;w=1"}, 300.0) == 100
    assert requests_allowed({}, 300.0) is None
    assert 0 < BURST_SHARE < 1
