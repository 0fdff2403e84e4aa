"""What a worker's attempts share: the store's one connection, and the places of resyncs and backlog."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from connectors.attempts import Attempts
from connectors.background import Handover
from connectors.work import Work
from schemas.settings import Settings


def make(**settings: Any) -> Attempts:
    unused: Any = None
    works: Handover[Work] = Handover(1)
    return Attempts(
        Settings(**settings),
        store=unused,
        resolver=unused,
        budget=unused,
        client=unused,
        tell=unused,
        small=works,
        large=works,
    )


def test_a_cancelled_transaction_ends_before_the_next_begins() -> None:
    """A claim that is lost is cancelled while its thread is in a transaction: nobody else may enter that one."""
    inside, most, running = threading.Event(), 0, 0
    go_on = threading.Event()

    def transaction(_: Any) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        inside.set()
        go_on.wait(60)
        running -= 1

    async def run() -> None:
        attempts = make()
        first = asyncio.create_task(attempts.stored(transaction))
        await asyncio.to_thread(inside.wait, 60)
        first.cancel()
        await asyncio.sleep(0.05)
        first.cancel()  # once by a lost lease, once by the end of the process
        second = asyncio.create_task(attempts.stored(transaction))
        await asyncio.sleep(0.1)
        assert not first.done(), "it waits for its thread"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second

    asyncio.run(run())
    assert (most, running) == (1, 0)
