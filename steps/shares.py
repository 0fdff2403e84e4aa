"""Shares of a flow's streams: which process handles a DID, and where a share starts when their number has changed. Pure.

Each of `count` processes reads every upstream whole and handles the DIDs of its share. The row of a share means: everything that
its DIDs have up to `seq` is durable. So all rows of one count together cover all DIDs up to the lowest of them, and a share of any
other count may start there. An epoch is one sequence of the upstream; shares may notice a new sequence at different times, and
then their epochs differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32


@dataclass(frozen=True, slots=True)
class Share:
    """Share `number` of `count`, from 0."""

    number: int = 0
    count: int = 1

    def owns(self, did: str | None) -> bool:
        """Whether this share handles a DID; the first share handles what has none. The same for every upstream."""
        return self.count == 1 or (crc32(did.encode()) % self.count if did else 0) == self.number


WHOLE = Share()


class Mark(NamedTuple):
    """A position. A later epoch is further than any seq of an earlier one."""

    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Start:
    """Where a share starts. `own`: at its own row. `gap`: the reason of a gap before it, or ''."""

    mark: Mark
    own: bool
    gap: str = ""


def start(share: Share, marks: Mapping[Share, Mark]) -> Start | None:
    """Where a share starts, from the rows of one upstream; None without rows.

    It is the furthest of its own row and the lowest row of any complete count. If a share of its count has noticed a new sequence
    that it has not, it may miss the end of the old one: it starts in the new one, with a gap. Where no count is complete, not all DIDs have a
    position yet: the lowest row, with a gap for those that have none.
    """
    own, complete = marks.get(share), _complete(marks)
    count = max(complete, key=lambda count: _lowest(complete[count]), default=None)
    if own is not None and (count is None or count == share.count or own >= _lowest(complete[count])):
        lowest = _lowest([mark for one, mark in marks.items() if one.count == share.count])
        if own.epoch < lowest.epoch:
            return Start(lowest, own=False, gap="sequence_restarted")
        return Start(own, own=True)
    if not marks:
        return None
    if count is None:
        return Start(_lowest([*marks.values()]), own=False, gap="began_at_tip")
    several = len({mark.epoch for mark in complete[count]}) > 1  # some may have missed the end of the old sequence
    return Start(_lowest(complete[count]), own=False, gap="sequence_restarted" if several else "")


def passed(share: Share, marks: Mapping[Share, Mark]) -> list[Share]:
    """The rows of other counts that are not needed any more: all shares of this count have passed them."""
    own = _complete(marks).get(share.count)
    return [] if own is None else [one for one in marks if one.count != share.count and marks[one] <= _lowest(own)]


def _complete(marks: Mapping[Share, Mark]) -> dict[int, list[Mark]]:
    """The rows of each count of which there are all."""
    found: dict[int, list[Mark]] = {}
    for one, mark in marks.items():
        found.setdefault(one.count, []).append(mark)
    return {count: rows for count, rows in found.items() if len(rows) == count}


def _lowest(marks: list[Mark]) -> Mark:
    """The newest epoch with the lowest seq of any: seqs of an older sequence may be higher, and prove nothing in the newer one."""
    return Mark(max(mark.epoch for mark in marks), min(mark.seq for mark in marks))
