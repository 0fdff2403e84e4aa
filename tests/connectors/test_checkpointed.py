"""The source that all flows share: when it commits, and when it ends."""

from __future__ import annotations

from threading import Event

import pytest
from typing_extensions import override

from connectors.checkpointed import CheckpointedPartition
from connectors.process import Health


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
    monkeypatch.setattr("connectors.checkpointed.STOP", flag)
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
