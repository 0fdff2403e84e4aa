"""The sequence over all partitions: racing writers with clocks that step, readers that begin anywhere, logs that are replaced."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.sequence import BLOCK_MESSAGES, SEQ_END, SEQS, Block, LogMark, advance, counts, replaced, restart

PARTITIONS = 3
NOW = 1_796_000_000_000_000
Number = tuple[int, int]


@dataclass
class Writer:
    """A replica: what it has read of the marks, and of the log."""

    read: int = 0
    mark: LogMark | None = None
    seen: list[int] = field(default_factory=lambda: [0] * PARTITIONS)


@dataclass
class Topic:
    """The topic of marks, and the ends of the log."""

    marks: list[tuple[int, LogMark]] = field(default_factory=list)  # (after, mark)
    ends: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

    def read(self, writer: Writer, most: int) -> None:
        for offset in range(writer.read, min(len(self.marks), writer.read + most)):
            after, mark = self.marks[offset]
            writer.read = offset + 1
            if counts(offset, after):
                writer.mark = mark

    def write(self, writer: Writer, now: int) -> None:
        if writer.mark is None:
            mark: LogMark | None = restart(None, [0] * PARTITIONS, now)
        else:
            mark = advance(writer.mark, writer.seen, now)
        if mark is not None:
            self.marks.append((writer.read - 1, mark))

    def numbers(self, first: int = 0) -> dict[Number, Number]:
        """(partition, offset) → (seq, time), as a reader finds them that begins at this offset of the topic."""
        found: dict[Number, Number] = {}
        start: LogMark | None = None
        for offset in range(first, len(self.marks)):
            after, mark = self.marks[offset]
            if not counts(offset, after):
                continue
            if start is not None:
                assert all(low <= high for low, high in zip(start.ends, mark.ends, strict=True)), "offsets go back"
                block, rank = Block(start, mark, offset), 0
                for part, (low, high) in enumerate(zip(start.ends, mark.ends, strict=True)):
                    for at in range(low, high):
                        found[part, at] = block.start.seq + SEQS * rank, block.first_time + rank
                        rank += 1
            start = mark
        return found


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, PARTITIONS - 1), st.integers(1, 700)),
        st.tuples(st.just("read marks"), st.integers(0, 2), st.integers(1, 5)),
        st.tuples(st.just("read log"), st.integers(0, 2), st.integers(1, 900)),
        st.tuples(st.just("write"), st.integers(0, 2), st.integers(-3_600_000_000, 3_600_000_000)),
    ),
    min_size=30,
    max_size=120,
)


@given(STEPS)
@settings(max_examples=60)
def test_all_readers_agree_whoever_writes_and_whatever_the_clocks_say(steps: list[tuple[str, int, int]]) -> None:
    """V1"""
    topic, writers = Topic(), [Writer() for _ in range(3)]
    for what, which, value in steps:
        if what == "append":
            topic.ends[which] += value
        elif what == "read marks":
            topic.read(writers[which], value)
        elif what == "read log":
            seen = writers[which].seen
            seen[:] = [min(end, there + value) for there, end in zip(seen, topic.ends, strict=True)]
        else:
            topic.write(writers[which], NOW + value)
    last = writers[0]
    for _ in range(10_000):  # at last one writer is left, and finishes
        topic.read(last, 10**6)
        last.seen = list(topic.ends)
        if last.mark is not None and list(last.mark.ends) == topic.ends:
            break
        topic.write(last, NOW)
    whole = topic.numbers()
    assert set(whole) == {(part, at) for part, end in enumerate(topic.ends) for at in range(end)}
    by_seq = [whole[place] for place in sorted(whole, key=lambda place: whole[place])]
    assert all(a[0] + SEQS <= b[0] and a[1] < b[1] for a, b in pairwise(by_seq))
    for part, end in enumerate(topic.ends):
        assert all(whole[part, at] < whole[part, at + 1] for at in range(end - 1)), "order of a partition"
    for first in range(len(topic.marks)):
        assert topic.numbers(first).items() <= whole.items()


def test_a_mark_that_lost_the_race_does_not_count() -> None:
    assert [counts(*pair) for pair in ((0, -1), (5, 4), (6, 4), (0, 0), (3, 5))] == [True, True, False, False, False]


def test_old_messages_are_cut_into_blocks_in_proportion() -> None:
    mark = restart(None, [0, 0, 0], NOW)
    ends = (100_000, 50_000, 10)
    blocks = 0
    while (following := advance(mark, ends, NOW)) is not None:
        assert sum(following.ends) - sum(mark.ends) <= BLOCK_MESSAGES + len(ends)
        shares = [there / end for there, end in zip(following.ends, ends, strict=True)]
        assert shares[0] == pytest.approx(shares[1], abs=0.01)
        assert following.time >= mark.time + sum(following.ends) - sum(mark.ends)
        mark, blocks = following, blocks + 1
    assert (mark.ends, blocks) == (ends, 147)
    assert advance(mark, (0, 0, 0), NOW + 1) is None


def test_a_replaced_log_continues_above_the_former_one() -> None:
    former = advance(restart(None, [0, 0, 0], NOW), (900, 50, 10), NOW)
    assert former is not None
    assert not replaced(former, [900, 50, 10])
    assert replaced(former, [901, 49, 99])
    assert replaced(former, [901, 50, 99, 1])
    for starts in ([0, 0, 0], [5000, 0, 0], [10**9, 0, 3]):
        following = restart(former, starts, NOW - 10**9)
        assert following.base > former.base
        assert following.seq >= former.seq
        assert following.time >= former.time
        assert following.ends == tuple(starts)


def test_numbers_stay_below_the_times() -> None:
    """A first mark that was lost by retention, and a century of a thousand messages a second."""
    century = restart(None, [0], NOW + 0)
    assert century.seq + SEQS * 1000 * 3600 * 24 * 365 * 75 < SEQ_END < NOW
    assert restart(None, [7], NOW).seq == restart(None, [0], NOW).seq
