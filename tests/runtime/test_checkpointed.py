"""The source that all flows share: when it commits, and when it ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

import bytewax.operators as op
import psycopg
import pytest
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main
from bytewax.testing import TestingSink
from typing_extensions import override

from connectors.atproto.stream import StreamPartition
from connectors.runtime import work
from connectors.runtime.background_loop import Handover
from connectors.runtime.checkpointed import CheckpointedPartition, CheckpointedSource
from connectors.runtime.health import Health
from steps.cursor import Cursors, Gap


class Numbers(CheckpointedPartition[int, int]):
    """1, 2, 3 … up to what is assigned; `place` None: the group has taken everything away."""

    def __init__(self) -> None:
        super().__init__(Health("numbers"))
        self.place: int | None = None
        self.commits: list[int] = []

    @override
    def poll(self) -> list[int]:
        if self._draining:
            return []
        self.place = (self.place or 0) + 1
        return [self.place]

    @override
    def position(self) -> int | None:
        return self.place

    @override
    def commit(self, position: int) -> None:
        self.commits.append(position)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Event:
    """The stop flag of a process that is not this one."""
    flag = Event()
    monkeypatch.setattr("connectors.runtime.checkpointed.STOP", flag)
    return flag


def test_a_position_is_committed_after_the_epoch_it_covers(stop: Event) -> None:
    """G8: taken at the end of an epoch, durable only when the engine asks for more, and before a stop is the last one."""
    numbers = Numbers()
    assert numbers.next_batch() == [1]
    numbers.snapshot()
    assert numbers.commits == []
    assert numbers.next_batch() == [2]
    assert numbers.commits == [1]
    stop.set()
    assert numbers.next_batch() == []  # 2 is not durable yet
    numbers.snapshot()
    with pytest.raises(StopIteration):
        numbers.next_batch()
    assert numbers.commits == [1, 2]


def test_a_stop_in_the_middle_of_a_rebalance_ends(stop: Event) -> None:
    """Everything was taken away and nothing given yet: there is no position, and none to wait for."""
    numbers = Numbers()
    numbers.next_batch()
    numbers.snapshot()
    numbers.next_batch()
    numbers.place = None
    stop.set()
    numbers.snapshot()
    with pytest.raises(StopIteration):
        numbers.next_batch()


def test_a_stop_before_anything_was_read_ends(stop: Event) -> None:
    """There is nothing to commit."""
    numbers = Numbers()
    stop.set()
    with pytest.raises(StopIteration):
        numbers.next_batch()
    assert numbers.commits == []


def test_a_commit_that_meets_a_lost_connection_is_made_again(stop: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: the flow waits where it is and says why; nothing was polled meanwhile."""
    monkeypatch.setattr("connectors.runtime.retry_database.FIRST_SECONDS", 0.0001)
    failures = [psycopg.OperationalError("the connection is lost")] * 3

    class Lost(Numbers):
        @override
        def commit(self, position: int) -> None:
            if failures:
                raise failures.pop()
            super().commit(position)

    numbers = Lost()
    numbers.next_batch()
    numbers.snapshot()
    assert numbers.next_batch() == [2]
    assert failures == []  # the fault fired
    assert numbers.commits == [1]
    assert numbers.health.state == "failing"


def test_gaps_of_a_stream_survive_a_commit_that_fails() -> None:
    """C2: a gap that was taken for a commit which was undone is written by the next one."""
    gap = Gap("https://relay.test", 1, 5, "lost")
    written: list[list[Gap]] = []

    class Store:
        def save(self, _moved: object, _details: object, gaps: list[Gap], *, answered: bool) -> None:
            assert answered
            if not written:
                written.append([])
                raise psycopg.OperationalError("gone")
            written.append(list(gaps))

    class Passable:
        def passable(self, _upstream: str, seq: int) -> int:
            return seq

    stream = object.__new__(StreamPartition)
    stream._deferral = Passable()  # type: ignore[assignment]
    stream._cursors, stream._store = Cursors(), Store()  # type: ignore[assignment]
    stream._gaps, stream._durable, stream._fillable = [], {}, False
    stream._cursors.gaps.append(gap)
    with pytest.raises(psycopg.OperationalError):
        stream.commit({"https://relay.test": 6})
    stream.commit({"https://relay.test": 6})
    assert written == [[], [gap]]
    stream.commit({"https://relay.test": 7})
    assert written[-1] == []


class Silent(CheckpointedPartition[int, int]):
    """Nothing ever comes. Counts its polls."""

    def __init__(self) -> None:
        super().__init__(Health("silent"))
        self.polls = 0

    @override
    def poll(self) -> list[int]:
        self.polls += 1
        assert self.polls < 1000
        return []

    @override
    def position(self) -> int | None:
        return None

    @override
    def commit(self, position: int) -> None:
        raise AssertionError


def test_a_source_without_work_is_polled_twice_a_rest(stop: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """S5: the real engine, with rests that take no time: before and after each, and not a thousand times a second."""
    rests: list[float] = []

    def rest(seconds: float = work.REST_SECONDS) -> bool:
        rests.append(seconds)
        if len(rests) == 20:
            stop.set()
        return False

    monkeypatch.setattr(work, "rest", rest)
    source = Silent()
    flow = Dataflow("silent")
    op.output("nowhere", op.input("silence", flow, CheckpointedSource(lambda: source)), TestingSink([]))
    cli_main(flow, epoch_interval=timedelta(seconds=0.5))
    assert len(rests) == 20
    assert set(rests) == {work.IDLE_SECONDS}
    assert source.polls <= 2 * len(rests) + 2


def test_the_next_poll_is_due_at_once() -> None:
    """The engine waits for `next_awake` minus the time before the poll: the time after it makes it wait as long as that took."""
    before = datetime.now(UTC)
    assert Silent().next_awake() <= before


def test_a_hand_over_ends_the_rest() -> None:
    """S5: work that appears is taken at once, not after the rest."""
    work.rest(0.0)
    queue: Handover[int] = Handover(10)
    putter = Thread(target=lambda: asyncio.run(queue.put(1)))
    putter.start()
    assert work.rest(60.0)
    putter.join()
    assert queue.take(9) == [1]
    assert not work.rest(0.0)
