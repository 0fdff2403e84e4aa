"""The resolver's memory, and how often it asks the directory: a directory of the test's own and the real identity table."""

import asyncio
import time
from collections.abc import Callable

import pytest

from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable, Resolver
from tests.identity.resolver_directory import DID, MANY, Directory, run


def test_memory_is_bounded(database: str) -> None:
    """G6"""

    async def body(_: Directory, resolver: Callable[..., Resolver]) -> None:
        one = resolver(identity_cache_entries=1)
        await one.resolve(DID)
        one._keep((await one.resolve(DID)).__class__("did:plc:b", None, None, None, None, None), 60)
        assert list(one._cache) == ["did:plc:b"]

    run(database, body)


def test_a_did_that_was_not_there_is_not_asked_for_again_for_a_while(database: str) -> None:
    """Negative entries: remembered, forgotten after their time, and at once when an event tells of the DID."""
    nobody = "did:plc:" + "z" * 24

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        one = resolver(identity_negative_seconds=60.0)
        for _ in range(5):
            with pytest.raises(IdentityNotFound):
                await one.resolve(nobody)
        assert directory.asked == [nobody]
        assert isinstance((await one.resolve_many([nobody], max_age=60))[nobody], IdentityNotFound)
        assert directory.asked == [nobody]
        one.forget(nobody)
        with pytest.raises(IdentityNotFound):
            await one.resolve(nobody)
        assert directory.asked == [nobody, nobody]
        short = resolver(identity_negative_seconds=0.0)
        for _ in range(2):
            with pytest.raises(IdentityNotFound):
                await short.resolve(nobody)
        assert len(directory.asked) == 4

    run(database, body)


def test_requests_are_paced_and_pause_when_the_directory_asks_for_it(database: str) -> None:
    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        paced = resolver(identity_requests_per_second=20.0)
        started = time.monotonic()
        dids = [
            "did:plc:" + str(number).rjust(24, "a").translate(str.maketrans("0189", "bcde")) for number in range(10)
        ]
        answers = await paced.resolve_many(dids, max_age=60)
        assert len(answers) == 10
        assert time.monotonic() - started >= 9 / 20
        directory.status = 429  # it asks for nine seconds
        with pytest.raises(IdentityUnreachable):
            await paced.resolve(DID)
        asked = len(directory.asked)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(paced.resolve(DID), 0.5)
        assert len(directory.asked) == asked

    run(database, body)


@pytest.mark.parametrize("status", [429, 503])
def test_waiting_requests_keep_the_pause_that_another_request_was_given(database: str, status: int) -> None:
    """Each of a batch had its moment before the first answer came, and a pause moved only those after it."""

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        directory.status, directory.retry_after = status, "60"
        one = resolver(identity_requests_per_second=20.0)
        batch = asyncio.create_task(one.resolve_many(MANY, max_age=60))
        async with asyncio.timeout(60):
            while not one.throttled:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        asked = len(directory.asked)
        await asyncio.sleep(1.5)
        assert len(directory.asked) - asked < 10  # of thirty, if some were under way still
        assert not batch.done()
        batch.cancel()

    run(database, body)


def test_what_a_directory_answered_before_it_limits_us_is_kept(database: str) -> None:
    """A batch may wait for minutes then: what was answered is in the table, whenever the process ends."""

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        directory.limited, directory.retry_after = set(MANY), "3600"
        one = resolver(identity_requests_per_second=20.0)
        batch = asyncio.create_task(one.resolve_many([DID, *MANY], max_age=60))
        async with asyncio.timeout(60):
            while not (one.throttled and await one.stored([DID])):
                await asyncio.sleep(0.05)
        assert not batch.done()
        batch.cancel()

    run(database, body)


def test_many_dids_are_one_query_and_only_what_is_missing_is_asked_for(database: str) -> None:
    """Pre-fetch for a backfill: what the table knows costs the directory nothing."""

    async def body(directory: Directory, resolver: Callable[..., Resolver]) -> None:
        await resolver().resolve(DID)
        assert directory.asked == [DID]
        other = resolver()
        found = await asyncio.gather(*(other.resolve(DID) for _ in range(20)), other.resolve_many([DID], max_age=60))
        assert {type(answer).__name__ for answer in found} == {"ResolvedIdentity", "dict"}
        assert directory.asked == [DID]

    run(database, body)
