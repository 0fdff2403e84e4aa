"""The reader of both topics of tasks: what ends its wait, and when it polls."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from flows.backfill import task_feed
from flows.backfill.task_feed import LogFeed
from schemas.settings import Settings


class Consumer:
    """As a GroupConsumer: a poll waits for `arrived`."""

    def __init__(self, *_: object, **__: object) -> None:
        self.arrived = threading.Event()
        self.polls = 0
        self.paused = False
        self.assigned = {("t", 0)}

    def poll(self, limit: int, wait_seconds: float = 60.0) -> list[Any]:
        self.polls += 1
        return [self] if self.arrived.wait(wait_seconds) and limit else []

    def pause(self, _parts: object) -> None:
        self.paused = True

    def resume(self, _parts: object) -> None:
        self.paused = False


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> LogFeed:
    """A feed without a broker."""
    monkeypatch.setattr(task_feed, "GroupConsumer", Consumer)
    monkeypatch.setattr(task_feed, "REST_SECONDS", 60.0)
    monkeypatch.setattr(task_feed, "FULL_SECONDS", 60.0)  # it passes when a test says so
    return LogFeed(Settings())


@pytest.mark.parametrize("urgent", [True, False])
def test_a_message_of_either_topic_ends_the_wait(feed: LogFeed, urgent: bool) -> None:
    """S5: both polls wait at the same time, so neither needs to be short."""
    one: Any = (feed._resync if urgent else feed._backlog).consumer
    other: Any = (feed._backlog if urgent else feed._resync).consumer

    async def arrive() -> None:
        while not (one.polls and other.polls):
            await asyncio.sleep(0.001)
        one.arrived.set()

    async def take() -> list[tuple[Any, bool]]:
        arriving = asyncio.create_task(arrive())
        taken = await feed.take(1, 1)
        await arriving
        assert other.polls == 1
        other.arrived.set()  # else the loop would wait for its thread
        return taken

    assert asyncio.run(take()) == [(one, urgent)]


def test_a_topic_without_room_is_paused_late_and_not_polled_meanwhile(feed: LogFeed) -> None:
    """It would discard prefetched messages; and what was read before waits for room."""
    resync: Any = feed._resync.consumer
    backlog: Any = feed._backlog.consumer

    async def run() -> None:
        assert await feed.take(0, 0) == []
        assert backlog.polls == 0
        feed._backlog._polled_at -= 60.0
        while not backlog.polls:
            assert await feed.take(0, 0) == []
        assert backlog.paused
        assert backlog.polls == 1
        backlog.arrived.set()
        resync.arrived.set()
        while not (taken := await feed.take(0, 1)):
            pass
        assert taken == [(backlog, False)]
        assert not backlog.paused

    asyncio.run(run())
