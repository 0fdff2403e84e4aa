"""A claimed repo in turns: bounded pieces, the outcome last, nothing after the claim was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tiny_repo import Repo

from connectors.pds import Download
from connectors.places import Places
from connectors.repos import Claim
from connectors.spool import Spool, SpoolBudget
from connectors.work import TURN_RECORDS, Chunk, Verdict, Work
from schemas import wire
from steps.car import CarLimits
from steps.identity import Identity
from steps.retry import Unavailable
from steps.snapshot import SnapshotReason

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
        places, order = Places(2, 1, per_host=3, line_seconds=30.0), []

        async def take(name: str, gate: asyncio.Event, *, urgent: bool = False) -> None:
            async with places.place("pds", urgent=urgent):
                order.append(name)
                await gate.wait()

        gates = [asyncio.Event() for _ in range(7)]
        tasks = [asyncio.create_task(take(f"backlog {n}", gates[n])) for n in range(4)]
        await asyncio.sleep(0)
        assert (places.taken, order) == (2, ["backlog 0", "backlog 1"])
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
        assert places.taken == 2, "one of three places is not the backlog's"
        for gate in gates:
            gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert places.taken == 0
        return order

    assert asyncio.run(main())[-2:] == ["backlog 2", "backlog 3"]
