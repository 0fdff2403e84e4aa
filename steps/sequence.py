"""One ascending number (`seq`) for every event of a log of many partitions. Pure.

The topic `firehose_sequence` has one partition of *marks*. A mark names an end offset of each partition: all messages of the log
between the mark before it and itself are one *block*, ordered by (partition, offset). So the marks put the whole log in one order,
which is the same for every reader, at any time.

Any number of writers race without a leader. A mark carries the offset of the last mark that its writer had read, and counts only if
that is the message directly before it (`counts`): of several writers that extend the same mark the first one wins, and the others
are ignored by every reader, since each decides by the message alone. A writer has therefore read everything before a mark that
counts, so offsets and times never go back, whatever its clock does.

    seq of a message  = base + SEQS × (messages before it)        SEQS numbers for the operations of one commit
    time of a message = microseconds, unique and ascending with seq

A log whose offsets went back was replaced: `restart` begins at a higher base. Source: ours.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

SEQS: Final = 256
"""Numbers of each message; a commit has at most 200 operations. Later ones (SLUICE_VERIFY=report) share the last number."""
BLOCK_MESSAGES: Final = 1024
"""Messages of a block at most: older ones are cut into blocks in proportion, so that partitions advance together."""
SEQS_PER_SECOND: Final = 200_000
"""A sequence begins at Unix time × this: above one that was lost, if that had fewer than 780 messages a second on average."""
SEQ_END: Final = 10**15
"""Cursors from here on are times in microseconds."""


class LogMark(NamedTuple):
    """The log up to `ends`, the next offset of each partition. `time`: of the next message at the earliest, Unix microseconds."""

    base: int
    time: int
    ends: tuple[int, ...]

    @property
    def seq(self) -> int:
        """Number of the next message."""
        return self.base + SEQS * sum(self.ends)


class Block(NamedTuple):
    """The messages between two marks. `offset`: of the mark at its end, in the topic of marks."""

    start: LogMark
    end: LogMark
    offset: int

    @property
    def messages(self) -> int:
        """How many there are; 0 if the log was replaced between the marks."""
        return sum(self.end.ends) - sum(self.start.ends) if self.end.base == self.start.base else 0

    @property
    def first_time(self) -> int:
        """Time of its first message."""
        return self.end.time - self.messages


def counts(offset: int, after: int) -> bool:
    """Whether a mark at this offset counts. `after`: the offset that its writer had read last, -1 for none."""
    return after == offset - 1


def advance(mark: LogMark, seen: Sequence[int], now: int) -> LogMark | None:
    """The mark to write when the log was read up to `seen`; None if that is no further. `now`: Unix microseconds."""
    new = [max(0, there - end) for end, there in zip(mark.ends, seen, strict=True)]
    total = sum(new)
    if not total:
        return None
    if total > BLOCK_MESSAGES:
        new = [-(-count * BLOCK_MESSAGES // total) for count in new]
    time = max(now, mark.time + sum(new))
    return LogMark(mark.base, time, tuple(end + count for end, count in zip(mark.ends, new, strict=True)))


def restart(mark: LogMark | None, starts: Sequence[int], now: int) -> LogMark:
    """The first mark of a log that begins at `starts`. `mark`: the last one of the log that it replaced."""
    base = now * SEQS_PER_SECOND // 1_000_000 - SEQS * sum(starts)
    if mark is not None:
        base = max(base, mark.base + 1, mark.seq - SEQS * sum(starts))
    return LogMark(base, max(now, mark.time if mark else 0), tuple(starts))


def replaced(mark: LogMark, ends: Sequence[int]) -> bool:
    """Whether this is another log than the one of the mark: it ends earlier, or has another number of partitions."""
    return len(ends) != len(mark.ends) or any(there < end for end, there in zip(mark.ends, ends, strict=True))
