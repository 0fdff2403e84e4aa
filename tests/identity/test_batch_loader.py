"""Calls close in time share a batch; errors and missing keys reach only the callers of their batch."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from connectors.identity.batch_loader import BatchLoader


def test_calls_close_in_time_share_a_batch_and_calls_during_a_batch_the_next_one() -> None:
    rounds: list[list[int]] = []

    async def main() -> list[int | None]:
        running = asyncio.Event()

        async def double(keys: Collection[int]) -> dict[int, int]:
            rounds.append(sorted(keys))
            running.set()
            await asyncio.sleep(0.05)
            return {key: 2 * key for key in keys if key != 7}

        loader = BatchLoader(double)
        first = asyncio.create_task(loader.one(1))
        await asyncio.sleep(0)
        second = asyncio.create_task(loader.one(2))
        await running.wait()
        return [*await asyncio.gather(*(loader.one(key) for key in (3, 4, 4, 7))), await first, await second]

    assert asyncio.run(main()) == [6, 8, 8, None, 2, 4]
    assert rounds == [[1, 2], [3, 4, 7]]


def test_an_error_reaches_every_caller_of_its_round_and_no_other() -> None:
    async def fail_on_two(keys: Collection[int]) -> dict[int, int]:
        await asyncio.sleep(0)
        if 2 in keys:
            raise OSError("gone")
        return dict.fromkeys(keys, 0)

    async def main() -> None:
        loader = BatchLoader(fail_on_two)
        answers = await asyncio.gather(loader.one(2), loader.one(3), return_exceptions=True)
        assert [type(answer) for answer in answers] == [OSError, OSError]
        assert await loader.one(3) == 0
        caller = asyncio.create_task(loader.one(4))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert await loader.one(5) == 0

    asyncio.run(main())
