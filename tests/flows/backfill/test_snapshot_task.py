"""A claimed repo in time slices: bounded pieces, the outcome last, nothing after the claim was lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from connectors.atproto.fetch_slots import FetchSlots
from connectors.atproto.pds import Download
from connectors.atproto.spool import Spool, SpoolBudget
from connectors.postgres.repo_queue import Claim
from flows.backfill.slices import BATCH_BYTES, SMALL_WAITING_BYTES, TimeSlices, chunks_of
from flows.backfill.source import BackfillSource
from flows.backfill.task import SLICE_RECORDS, MessageChunk, Result, SnapshotTask
from protocol.car import CarLimits
from protocol.did_document import ResolvedIdentity
from protocol.snapshot import SnapshotReason
from schemas import wire
from steps.retry import Unavailable
from tests.support.tiny_repo import Repo

BUDGET = SpoolBudget(1 << 30, 1 << 30)


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    assert (BUDGET.held("memory"), BUDGET.held("disk")) == (0, 0)


def task_of(
    repo: Repo,
    results: list[Result],
    *,
    min_rev: str = "",
    memory: int = 1 << 30,
    cut: int | None = None,
    blocks: int = 1 << 20,
) -> SnapshotTask:
    claim = Claim(repo.did, 7, min_rev, None, "listed", "2026-01-01T00:00:00.000Z", 3, 0)
    spool = Spool(BUDGET, memory, CarLimits(blocks=blocks))
    spool.write(repo.car()[:cut])
    identity = ResolvedIdentity(repo.did, "https://pds.test", "a.test", repo.key.did_key, None, None)
    download = Download(repo.did, "https://pds.test", "2026-01-02T00:00:00.000Z", spool)
    return SnapshotTask(claim, min_rev, identity=identity, fetched=download, at=download.time, on_result=results.append)


def large_repo(records: int) -> Repo:
    return Repo({f"app.bsky.feed.post/{n:06}": {"$type": "app.bsky.feed.post", "text": f"{n}"} for n in range(records)})


def run_slices(task: SnapshotTask) -> list[MessageChunk]:
    chunks = []
    task.chosen = task.large
    while not task.finished:
        if task.advance_verification():
            chunks.append(task.next_chunk())
    return chunks


@pytest.mark.parametrize("memory", [1 << 30, 0])
@pytest.mark.parametrize("records", [0, 1, SLICE_RECORDS, 2 * SLICE_RECORDS + 1])
def test_a_repo_comes_in_bounded_pieces_and_its_outcome_last(records: int, memory: int) -> None:
    """G4, G6: from memory or from disk, the same messages."""
    results: list[Result] = []
    repo = large_repo(records)
    task = task_of(repo, results, memory=memory)
    assert task.large is (memory == 0)
    chunks = run_slices(task)
    assert all(len(chunk.values) <= SLICE_RECORDS + 1 for chunk in chunks)
    assert [chunk.closes for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    events = [wire.decode_backfill(value) for chunk in chunks for value in chunk.values]
    assert [f"{event.collection}/{event.rkey}" for event in events[:-1]] == sorted(repo.records)
    assert {event.attempt for event in events} == {7}
    outcome = events[-1]
    assert (outcome.status, outcome.count, outcome.active) == ("synced", records, True)
    assert (outcome.account_time, outcome.account_seq) == ("2026-01-01T00:00:00.000Z", 3)
    assert (outcome.handle, outcome.host) == ("a.test", "https://pds.test")
    assert results == []
    task.finish(None)
    assert results == [None]


def repeated(leaves: int, size: int, name: str = "a") -> Repo:
    """A repo whose leaves all name one block."""
    return Repo({f"a.b.{name}/{n:05}": {"text": "x" * size} for n in range(leaves)})


def test_a_round_is_bounded_in_bytes_and_serves_every_task() -> None:
    """H2: forty small CARs that become 8 MB each: one batch is no longer than any other, and none starves."""
    results: list[Result] = []
    tasks = [task_of(repeated(80, 100_000), results) for _ in range(40)]
    assert sum(task.size for task in tasks) < 6_000_000
    assert all(task.advance_verification() for task in tasks)
    first_turn: dict[SnapshotTask, int] = {}
    for batch in range(5):
        chunks = list(chunks_of(sorted(tasks, key=lambda task: task.newest_slice)))
        assert sum(chunk.size for chunk in chunks) < BATCH_BYTES + 200_000
        for chunk in chunks:
            first_turn.setdefault(chunk.task, batch)
    assert first_turn.keys() == set(tasks)
    # each message is larger than the share of one among so many
    assert {len(chunk.values) for chunk in chunks} == {3}
    for task in tasks:
        task.finish(None)


def test_no_open_task_misses_two_rounds() -> None:
    """H2: where one round has no room for all, those without a slice come first in the next."""
    tasks = [task_of(repeated(80, 130_000), []) for _ in range(12)]
    slices, missed, misses = filled(tasks), Counter[SnapshotTask](), 0
    for _ in range(8):
        served = {chunk.task for chunk in slices.next_chunks()}
        for task in slices._open:
            missed[task] = 0 if task in served else missed[task] + 1
            misses += missed[task]
        assert max(missed.values()) < 2
    assert misses > 0, "the rounds had room for all"
    for task in tasks:
        task.finish(None)


def test_a_slice_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: records that take long to decode end the turn, whatever they weigh."""
    task = task_of(large_repo(100), [])
    assert task.advance_verification()
    clock = count(0.0, 0.03)
    monkeypatch.setattr("flows.backfill.task.time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    assert [len(task.next_chunk().values) for _ in range(3)] == [4, 4, 4]
    task.finish(None)


def test_a_small_car_that_expands_is_parked_as_bytes_until_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: one such task is in memory at a time; the others get slices in every round meanwhile."""
    monkeypatch.setattr("flows.backfill.task.HEAVY_BYTES", 1_000_000)
    results: list[Result] = []
    heavy = [task_of(repeated(30, 100_000, name), results) for name in "abc"]
    light = task_of(large_repo(5), results)
    slices = filled([*heavy, light])
    rounds: list[list[MessageChunk]] = []
    while not all(task.finished for task in heavy):
        rounds.append(slices.next_chunks())
        for chunk in rounds[-1]:
            if chunk.closes:
                chunk.task.finish(None)
        assert all(task._snapshot is None and task.large for task in slices._parked)
        opened = [task for task in heavy if task._snapshot is not None and task.chosen]
        assert len(opened) <= 1
        assert slices.busy or all(task.finished for task in heavy)
    assert light in [chunk.task for chunk in rounds[0]], "the light one does not wait for the heavy ones"
    assert len(rounds) < 40
    assert results == [None] * 4
    slices.next_chunks()
    assert slices.empty


def test_a_parked_task_whose_claim_was_lost_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.backfill.task.HEAVY_BYTES", 1_000_000)
    results: list[Result] = []
    heavy = [task_of(repeated(30, 100_000, name), results) for name in "ab"]
    slices = filled(heavy)
    slices.next_chunks()
    slices.next_chunks()
    (parked,) = slices._parked
    parked.fenced = True
    slices.next_chunks()
    assert (results, slices._parked) == ([None], [])
    for task in heavy:
        task.finish(None)


def test_the_source_polls_again_at_once_while_a_task_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a verification emits nothing: after an empty batch the engine would wait before the next step.

    The engine waits for `next_awake` minus the time before the poll: the time after a poll makes it wait as long as that took.
    """
    monkeypatch.setattr("connectors.atproto.spool.READ_BYTES", 1000)
    task = task_of(large_repo(200), [], memory=0)
    source: Any = object.__new__(BackfillSource)
    source._background = SimpleNamespace(check=lambda: None, finished=True)
    source._claimed, source._slices = deque(), filled([task])
    steps = 0
    while not source.poll():
        assert source.busy()
        assert not source.drained()
        steps += 1
    assert steps > 5
    assert source.poll() == []
    assert not source.busy()
    assert source.drained()
    task.finish(None)


def filled(tasks: list[SnapshotTask]) -> TimeSlices:
    """A scheduler with these tasks before it."""
    slices = TimeSlices(1 << 30)

    async def fill() -> None:
        for task in tasks:
            await (slices.large if task.large else slices.small).put(task)

    asyncio.run(fill())
    return slices


def test_few_downloads_wait_for_a_flow_that_is_behind() -> None:
    """B6: while a repo waits, its live events are buffered: p99 of live events was 4.6 s behind 128 MiB of downloads."""
    slices = TimeSlices()
    tasks = [task_of(repeated(1, 200_000, f"n{number}"), []) for number in range(20)]

    async def fill() -> None:
        for task in tasks:
            await asyncio.wait_for(slices.small.put(task), 0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(fill())
    assert SMALL_WAITING_BYTES - 250_000 < len(slices.small) <= SMALL_WAITING_BYTES
    for task in tasks:
        task.finish(None)


def test_a_lost_claim_ends_in_the_middle() -> None:
    """What was fenced makes no more messages, least of all an outcome."""
    results: list[Result] = []
    task = task_of(large_repo(2 * SLICE_RECORDS), results)
    assert task.advance_verification()
    assert not task.next_chunk().closes
    task.fenced = True
    assert not task.advance_verification()
    assert task.finished
    assert results == [None]


def test_a_rejected_snapshot_is_a_result_and_makes_no_message() -> None:
    """G7."""
    found = []
    for given in ({"cut": -1}, {"cut": 10}, {"min_rev": "7zzzzzzzzzzzz"}):
        results: list[Result] = []
        assert run_slices(task_of(large_repo(5), results, **given)) == []  # type: ignore[arg-type]
        found += [result.reason for result in results if result is not None]
    assert found == [SnapshotReason.TRUNCATED, SnapshotReason.TRUNCATED, SnapshotReason.STALE]


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_more_blocks_than_the_setting_allows_are_named_with_it(memory: int) -> None:
    """G6: the index of a CAR is memory; what limits it is no fault of the CAR, and an operator can raise it."""
    results: list[Result] = []
    repo = large_repo(50)
    blocks = len(repo.blocks)
    assert run_slices(task_of(repo, results, memory=memory, blocks=blocks - 1)) == []
    (result,) = results
    assert result is not None
    assert result.reason is SnapshotReason.TOO_MANY_BLOCKS
    assert "SLUICE_BACKFILL_MAX_CAR_BYTES" in result.detail
    task = task_of(repo, results, memory=memory, blocks=blocks)
    assert run_slices(task), "as many as the setting allows are taken"
    task.finish(None)


def test_an_account_state_is_one_message() -> None:
    claim = Claim("did:plc:abcdefghijklmnopqrstuvwx", 2, "", "https://pds.test", "deletion", "t", 1, 0)
    for fetched, status in (
        (Unavailable("takendown", deleted=False), "unavailable"),
        (Unavailable("not_found", deleted=True), "deleted"),
    ):
        task = SnapshotTask(claim, "", identity=None, fetched=fetched, at="now", on_result=lambda _: None)
        (chunk,) = run_slices(task)
        outcome = wire.decode_backfill(chunk.values[0])
        assert (outcome.status, outcome.active, outcome.reason, outcome.attempt) == (status, False, fetched.status, 2)


def test_urgent_work_has_its_own_slots_and_goes_first() -> None:
    async def main() -> list[str]:
        slots, order = FetchSlots(2, 1, per_host=3, queue_seconds=30.0), []

        async def take(name: str, gate: asyncio.Event, *, urgent: bool = False) -> None:
            async with slots.slot("pds", urgent=urgent):
                order.append(name)
                await gate.wait()

        async def settle() -> None:
            """Until everything waits for a gate, however many turns of the loop that takes."""
            for _ in range(50):
                await asyncio.sleep(0)

        gates = [asyncio.Event() for _ in range(7)]
        tasks = [asyncio.create_task(take(f"backlog {n}", gates[n])) for n in range(4)]
        await asyncio.sleep(0)
        assert (slots.taken, order) == (2, ["backlog 0", "backlog 1"])
        tasks += [asyncio.create_task(take(f"urgent {n}", gates[4 + n], urgent=True)) for n in range(2)]
        await asyncio.sleep(0)
        assert order == ["backlog 0", "backlog 1", "urgent 0"]
        tasks[5].cancel()
        tasks.append(asyncio.create_task(take("urgent 2", gates[6], urgent=True)))
        gates[4].set()
        await settle()
        assert order[-1] == "urgent 2"
        gates[0].set()
        await settle()
        assert slots.taken == 2, "one of three slots is not for the backlog"
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.taken == 0
        return order

    assert asyncio.run(main())[-2:] == ["backlog 2", "backlog 3"]
