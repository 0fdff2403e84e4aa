"""A claimed repo in turns: bounded pieces, the outcome last, nothing after the claim was lost."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from connectors.atproto.fetch_slots import FetchSlots
from connectors.atproto.pds import Download
from connectors.atproto.spool import Spool, SpoolBudget
from connectors.postgres.repo_queue import Claim
from connectors.runtime.background_loop import Handover
from flows.backfill.flow import BATCH_BYTES, records, verify
from flows.backfill.source import ClaimsPartition
from flows.backfill.task import TURN_RECORDS, Chunk, Verdict, Work
from protocol.car import CarLimits
from protocol.did_document import Identity
from protocol.snapshot import SnapshotReason
from schemas import wire
from steps.retry import Unavailable
from tests.support.tiny_repo import Repo

BUDGET = SpoolBudget(1 << 30, 1 << 30)


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    assert (BUDGET.held("memory"), BUDGET.held("disk")) == (0, 0)


def work_of(
    repo: Repo,
    verdicts: list[Verdict],
    *,
    min_rev: str = "",
    memory: int = 1 << 30,
    cut: int | None = None,
    blocks: int = 1 << 20,
) -> Work:
    claim = Claim(repo.did, 7, min_rev, None, "listed", "2026-01-01T00:00:00.000Z", 3, 0)
    spool = Spool(BUDGET, memory, CarLimits(blocks=blocks))
    spool.write(repo.car()[:cut])
    identity = Identity(repo.did, "https://pds.test", "a.test", repo.key.did_key, None, None)
    download = Download(repo.did, "https://pds.test", "2026-01-02T00:00:00.000Z", spool)
    return Work(
        claim, min_rev, identity=identity, fetched=download, at=download.time, tell=lambda _, v: verdicts.append(v)
    )


def large_repo(records: int) -> Repo:
    return Repo({f"app.bsky.feed.post/{n:06}": {"$type": "app.bsky.feed.post", "text": f"{n}"} for n in range(records)})


def turns(work: Work) -> list[Chunk]:
    chunks = []
    work.chosen = work.large
    while not work.finished:
        if work.verified():
            chunks.append(work.messages())
    return chunks


@pytest.mark.parametrize("memory", [1 << 30, 0])
@pytest.mark.parametrize("records", [0, 1, TURN_RECORDS, 2 * TURN_RECORDS + 1])
def test_a_repo_comes_in_bounded_pieces_and_its_outcome_last(records: int, memory: int) -> None:
    """G4, G6: from memory or from disk, the same messages."""
    verdicts: list[Verdict] = []
    repo = large_repo(records)
    work = work_of(repo, verdicts, memory=memory)
    assert work.large is (memory == 0)
    chunks = turns(work)
    assert all(len(chunk.values) <= TURN_RECORDS + 1 for chunk in chunks)
    assert [chunk.closes for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    events = [wire.decode_backfill(value) for chunk in chunks for value in chunk.values]
    assert [f"{event.collection}/{event.rkey}" for event in events[:-1]] == sorted(repo.records)
    assert {event.attempt for event in events} == {7}
    outcome = events[-1]
    assert (outcome.status, outcome.count, outcome.active) == ("synced", records, True)
    assert (outcome.account_time, outcome.account_seq) == ("2026-01-01T00:00:00.000Z", 3)
    assert (outcome.handle, outcome.host) == ("a.test", "https://pds.test")
    assert verdicts == []
    work.finish(None)
    assert verdicts == [None]


def repeated(leaves: int, size: int, name: str = "a") -> Repo:
    """A repo whose leaves all name one block."""
    return Repo({f"a.b.{name}/{n:05}": {"text": "x" * size} for n in range(leaves)})


def test_a_batch_is_bounded_in_bytes_and_every_work_has_its_turn() -> None:
    """H2: forty small CARs that become 8 MB each: one batch is no longer than any other, and none starves."""
    verdicts: list[Verdict] = []
    works = [work_of(repeated(80, 100_000), verdicts) for _ in range(40)]
    assert sum(work.size for work in works) < 6_000_000
    assert all(work.verified() for work in works)
    first_turn: dict[Work, int] = {}
    for batch in range(5):
        chunks = list(records(sorted(works, key=lambda work: work.served)))
        assert sum(chunk.size for chunk in chunks) < BATCH_BYTES + 200_000
        for chunk in chunks:
            first_turn.setdefault(chunk.work, batch)
    assert first_turn.keys() == set(works)
    # each message is larger than the share of one among so many
    assert {len(chunk.values) for chunk in chunks} == {3}
    for work in works:
        work.finish(None)


def test_a_turn_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: records that take long to decode end the turn, whatever they weigh."""
    work = work_of(large_repo(100), [])
    assert work.verified()
    clock = count(0.0, 0.03)
    monkeypatch.setattr("flows.backfill.task.time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    assert [len(work.messages().values) for _ in range(3)] == [4, 4, 4]
    work.finish(None)


def test_a_small_car_that_becomes_much_waits_as_bytes_until_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: one such work is in memory at a time; the others take part in every batch meanwhile."""
    monkeypatch.setattr("flows.backfill.task.HEAVY_BYTES", 1_000_000)
    verdicts: list[Verdict] = []
    heavy = [work_of(repeated(30, 100_000, name), verdicts) for name in "abc"]
    light = work_of(large_repo(5), verdicts)
    partition = _partition([*heavy, light])
    seen: list[list[Work]] = []
    while not all(work.finished for work in heavy):
        turn = partition.poll()
        ready = list(verify(turn))
        for chunk in records(ready):
            if chunk.closes:
                chunk.work.finish(None)
        assert all(work._snapshot is None and work.large for work in partition._parked)
        opened = [work for work in heavy if work._snapshot is not None and work.chosen]
        assert len(opened) <= 1
        seen.append(turn)
    assert light.finished
    assert light in seen[0]
    assert [turn for turn in seen if not turn] == []
    assert verdicts == [None] * 4
    assert partition.drained()


def test_a_parked_work_whose_claim_was_lost_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.backfill.task.HEAVY_BYTES", 1_000_000)
    verdicts: list[Verdict] = []
    heavy = [work_of(repeated(30, 100_000, name), verdicts) for name in "ab"]
    partition = _partition(heavy)
    list(verify(partition.poll()))
    partition.poll()
    (parked,) = partition._parked
    parked.fenced = True
    partition.poll()
    assert (verdicts, partition._parked) == ([None], [])
    for work in heavy:
        work.finish(None)


def _partition(works: list[Work]) -> ClaimsPartition:
    """The source with these works before it, without its loop."""
    partition: Any = object.__new__(ClaimsPartition)
    partition._background = SimpleNamespace(check=lambda: None, finished=True)
    partition._settled, partition._open, partition._parked, partition._heavy = deque(), [], [], None
    partition._parked_last = False
    partition._small, partition._large = Handover(1 << 30, lambda work: work.size), Handover(2)

    async def fill() -> None:
        for work in works:
            await (partition._large if work.large else partition._small).put(work)

    asyncio.run(fill())
    return partition


def test_a_lost_claim_ends_in_the_middle() -> None:
    """What was fenced makes no more messages, least of all an outcome."""
    verdicts: list[Verdict] = []
    work = work_of(large_repo(2 * TURN_RECORDS), verdicts)
    assert work.verified()
    assert not work.messages().closes
    work.fenced = True
    assert not work.verified()
    assert work.finished
    assert verdicts == [None]


def test_a_refused_snapshot_is_a_verdict_and_makes_no_message() -> None:
    """G7."""
    found = []
    for given in ({"cut": -1}, {"cut": 10}, {"min_rev": "7zzzzzzzzzzzz"}):
        verdicts: list[Verdict] = []
        assert turns(work_of(large_repo(5), verdicts, **given)) == []  # type: ignore[arg-type]
        found += [verdict.reason for verdict in verdicts if verdict is not None]
    assert found == [SnapshotReason.TRUNCATED, SnapshotReason.TRUNCATED, SnapshotReason.STALE]


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_more_blocks_than_the_setting_allows_are_named_with_it(memory: int) -> None:
    """G6: the index of a CAR is memory; what limits it is no fault of the CAR, and an operator can raise it."""
    verdicts: list[Verdict] = []
    repo = large_repo(50)
    blocks = len(repo.blocks)
    assert turns(work_of(repo, verdicts, memory=memory, blocks=blocks - 1)) == []
    (verdict,) = verdicts
    assert verdict is not None
    assert verdict.reason is SnapshotReason.TOO_MANY_BLOCKS
    assert "SLUICE_CAR_MAX_BLOCKS" in verdict.detail
    work = work_of(repo, verdicts, memory=memory, blocks=blocks)
    assert turns(work), "as many as the setting allows are taken"
    work.finish(None)


def test_an_account_state_is_one_message() -> None:
    claim = Claim("did:plc:abcdefghijklmnopqrstuvwx", 2, "", "https://pds.test", "deletion", "t", 1, 0)
    for fetched, status in (
        (Unavailable("takendown", deleted=False), "unavailable"),
        (Unavailable("not_found", deleted=True), "deleted"),
    ):
        work = Work(claim, "", identity=None, fetched=fetched, at="now", tell=lambda *_: None)
        (chunk,) = turns(work)
        outcome = wire.decode_backfill(chunk.values[0])
        assert (outcome.status, outcome.active, outcome.reason, outcome.attempt) == (status, False, fetched.status, 2)


def test_urgent_work_has_places_of_its_own_and_goes_first() -> None:
    async def main() -> list[str]:
        slots, order = FetchSlots(2, 1, per_host=3, line_seconds=30.0), []

        async def take(name: str, gate: asyncio.Event, *, urgent: bool = False) -> None:
            async with slots.slot("pds", urgent=urgent):
                order.append(name)
                await gate.wait()

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
        await asyncio.sleep(0.01)
        assert order[-1] == "urgent 2"
        gates[0].set()
        await asyncio.sleep(0.01)
        assert slots.taken == 2, "one of three places is not the backlog's"
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.taken == 0
        return order

    assert asyncio.run(main())[-2:] == ["backlog 2", "backlog 3"]
