"""A PDS that hangs among others: only its own repos wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from connectors.atproto.fetch_slots import FetchSlots, QueueFull
from tests.flows.backfill.backfill_here import WorldHere

Here = Callable[..., WorldHere]
CONCURRENCY, SHARE = 6, 2


def test_a_host_that_hangs_delays_only_its_own_repos(here: Here) -> None:
    """P4, B3, C4: its repos stand first in the log; the others are done while it hangs, and then it is done too."""
    run = here(
        {"repos": 240, "records_per_repo": 5, "inactive_share": 0.0, "pdses": 3},
        backfill_concurrency=CONCURRENCY,
        pds_concurrency=SHARE,
        host_queue_seconds=10.0,
    )
    simulation = run.simulation
    truth = simulation.state()
    slow = {did: one for did, one in truth.items() if one.pds == 0}
    others = {did: one for did, one in truth.items() if one.pds != 0}
    assert len(slow) > CONCURRENCY * 10, "more than may wait for it"
    simulation.set_faults(pds_hang={"host": 0, "seconds": 600, "per_did": 0})
    run.list_all(slow)
    flow = run.start()
    run.until(lambda: simulation.fired("pds_hang") >= SHARE)
    run.list_all(others)
    run.until(lambda: run.schedule() >= 0 and run.produced() == len(others), 20, run.summary)
    assert simulation.fired("pds_hang") == SHARE, "no more of its slots than its share were taken"
    # what is too much for it comes back later, and is not a failure
    run.until(lambda: flow.metric("sluice_claims_total", result="deferred"), 20)
    assert flow.metric("sluice_backfill_fetch_errors_total") == 0
    assert {row["retry_count"] for row in run.rows().values()} == {0}
    flow.kill()  # with what hangs
    simulation.set_faults(clear=True)
    run.execute("update sluice.repo set lease_until = now() where phase = 'backfill'")
    run.execute("update sluice.repo set next_retry_at = now() where phase = 'pending'")  # when their time has come
    run.start()
    run.run_to_end(len(truth))
    run.check(truth)


def test_ten_dripping_hosts_delay_other_repos_by_a_minute_at_most(here: Here) -> None:
    """H3, B3: one byte in five seconds from each of ten PDSes; before, five ordinary repos waited eleven minutes."""
    run = here({"repos": 75, "records_per_repo": 5, "inactive_share": 0.0, "pdses": 15}, fetch_idle_seconds=300.0)
    truth = run.simulation.state()
    slow = {did: one for did, one in truth.items() if one.pds < 10}
    others = {did: one for did, one in truth.items() if one.pds >= 10}
    run.simulation.set_faults(pds_trickle={"hosts": list(range(10)), "chunk": 1, "interval": 5.0, "per_did": 0})
    run.list_all(slow)
    flow = run.start()
    run.until(lambda: run.simulation.fired("pds_trickle") >= 8)
    run.list_all(others)
    run.until(lambda: run.schedule() >= 0 and run.produced() == len(others), 65, run.summary)
    errors = [str(row["last_error"]) for row in run.rows().values() if row["last_error"]]
    assert any(error.startswith("host_slow") for error in errors), errors
    assert {row["retry_count"] for row in run.rows().values()} == {0}
    assert flow.metric("sluice_backfill_fetch_errors_total", reason="host_slow") >= 6
    run.check(others)


def test_the_end_of_a_slow_queue_is_evicted_and_returns_spread(timeless: asyncio.Runner) -> None:
    """A host's queue is bounded by its speed. Repos that wait for a free slot do not count as its queue."""

    async def run() -> list[float]:
        slots = FetchSlots(3, 1, 1, 0.05, timeless.get_loop().time)
        away: list[float] = []
        done: list[str] = []
        hang = asyncio.Event()

        async def fetch(host: str) -> None:
            try:
                async with slots.slot(host, urgent=False):
                    async with slots.fetching(host):
                        await (hang.wait() if host == "slow" else asyncio.sleep(0))
                    done.append(host)
            except QueueFull as err:
                away.append(err.seconds)

        tasks = [asyncio.create_task(fetch("slow")) for _ in range(6)]
        await asyncio.sleep(0.2)
        assert (slots.taken, slots.queued(urgent=False)) == (1, 5)
        tasks += [asyncio.create_task(fetch(host)) for host in "abcdef"]
        await asyncio.sleep(0)
        slots.evict_overdue()
        hang.set()
        await asyncio.gather(*tasks)
        assert sorted(done) == [*"abcdef", "slow", "slow"]
        assert (slots.taken, slots.queued(urgent=False)) == (0, 0)
        return away

    away = timeless.run(run())
    assert len(away) == 4
    assert away == sorted(away)
    assert len(set(away)) == 4


def test_hanging_hosts_do_not_take_all_slots_again(timeless: asyncio.Runner) -> None:
    """B3: a host that was slow gets one slot until it is fast again; a fast host keeps its share."""
    held: dict[str, list[int]] = {}

    async def fetch(slots: FetchSlots, host: str, seconds: float) -> None:
        async with slots.slot(host, urgent=False), slots.fetching(host):
            at_once[host] = at_once.get(host, 0) + 1
            held.setdefault(host, []).append(at_once[host])
            await asyncio.sleep(seconds)
            at_once[host] -= 1

    async def scenario() -> None:
        slots = FetchSlots(4, 0, 2, 0.2, timeless.get_loop().time)
        for seconds in (0.5, 0.1, 0.001):
            hanging = [fetch(slots, host, seconds) for host in ("a", "b") for _ in range(4 if seconds > 0.01 else 20)]
            quick = [fetch(slots, "quick", 0.01) for _ in range(8)]
            await asyncio.wait_for(asyncio.gather(*hanging, *quick), 20)
            most.append({host: max(counts) for host, counts in held.items()})
            held.clear()

    at_once: dict[str, int] = {}
    most: list[dict[str, int]] = []
    timeless.run(scenario())
    assert most[0]["a"] == most[0]["b"] == 2, "nothing is known of them yet"
    assert most[1]["a"] == most[1]["b"] == 1
    assert most[2]["a"] == most[2]["b"] == 2, "they have answered quickly"
    assert {counts["quick"] for counts in most} == {2}
