"""The loop beside a flow: what it left behind is taken, and what is said to it is lost, when it has ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from connectors.runtime.background_loop import Background, Handover


def ended(background: Background) -> None:
    """Until its thread is gone, and so its loop."""
    background.cancel(60)
    for thread in threading.enumerate():
        if thread.name == "left":
            thread.join(60)
    assert background.finished
    background.check()


def test_what_a_loop_left_behind_is_taken_after_its_end() -> None:
    """C4, B8: a stop while the log is slow: works still wait when the loop has given its claims back and is closed."""
    queue: Handover[int] = Handover(10)

    async def main() -> None:
        await queue.put(1)
        await queue.put(2)

    background = Background("left", main)
    background.start()
    ended(background)
    assert queue.take(1) == [1]
    assert queue.take(9) == [2]
    background.call(lambda: None)


def test_a_call_to_a_loop_that_has_just_started_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """C4: a stop while the process starts: the claims' loop was never told, and the process did not end."""
    run = uvloop.run

    def late(work: Coroutine[Any, Any, None]) -> None:
        time.sleep(0.2)
        run(work)

    async def main() -> None:
        while not told:
            await asyncio.sleep(0.01)

    told: list[int] = []
    monkeypatch.setattr("connectors.runtime.background_loop.uvloop.run", late)
    background = Background("begun", main)
    background.start()
    background.call(lambda: told.append(1))
    deadline = time.monotonic() + 60
    while not background.finished:
        assert time.monotonic() < deadline, "it waits for a word that was lost"
        time.sleep(0.01)
    background.check()


def test_a_take_is_bounded_in_size_and_takes_one_item_at_least() -> None:
    """H2."""
    queue: Handover[int] = Handover(1000, size=lambda item: item)
    for item in (3, 4, 5, 50, 1):
        asyncio.run(queue.put(item))
    assert queue.take(10, 7) == [3, 4]
    assert queue.take(10, 1) == [5]
    assert queue.take(1, 100) == [50]
    assert queue.take(10) == [1]
    assert queue.take(10, 7) == []
