"""The labels of one labeler in the order of its `seq`, from the partitions of the log. Pure.

A partition has them in nearly this order: a label that the labeler's stream repeated, or that was refused and retried, comes later.
What was read of each partition is buffered until the lowest `seq` is certain: every partition has a label in its buffer or is
read up to its end, and the mirror's position in the labeler's stream, which was read before these ends, is not below it.
"""

from collections import deque
from collections.abc import Mapping

from schemas import wire

BUFFERED = 500
"""Labels of a partition, above which it is not read on."""
FRAME_LABELS = 2000


class LabelMerge:
    """`after`: labels up to this seq are left out. `starts`: partition → the first offset that is read."""

    def __init__(self, after: int, starts: Mapping[int, int]) -> None:
        self._after = after
        self._last = after
        self._frame: list[wire.LabelEvent] = []
        self._next = dict(starts)
        self._buffers: dict[int, deque[wire.LabelEvent]] = {part: deque() for part in starts}

    def take(self, part: int, offset: int, label: wire.LabelEvent | None) -> None:
        """The next message of a partition; None: of another labeler."""
        self._next[part] = offset + 1
        if label is not None and label.seq > self._after:
            self._buffers[part].append(label)

    def full(self) -> set[int]:
        """Partitions not to be read on."""
        return {part for part, buffer in self._buffers.items() if len(buffer) >= BUFFERED}

    def certain(self, ends: Mapping[int, int]) -> bool:
        """Whether the lowest seq is known: no partition that may have it is still to be read."""
        return all(self._buffers[part] or self._next[part] >= end for part, end in ends.items())

    def take_frame(self, ends: Mapping[int, int], position: int) -> tuple[int, list[wire.LabelEvent]] | None:
        """The next seq and all its labels; None while it is not certain. A label that comes late has the seq of the last one."""
        while self.certain(ends):
            seq, part = min(
                ((buffer[0].seq, part) for part, buffer in self._buffers.items() if buffer), default=(position + 1, -1)
            )
            if seq > position or (self._frame and seq != self._frame[0].seq) or len(self._frame) >= FRAME_LABELS:
                return self._flush()
            self._frame.append(self._buffers[part].popleft())
        return None

    def _flush(self) -> tuple[int, list[wire.LabelEvent]] | None:
        if not self._frame:
            return None
        self._last, taken, self._frame = max(self._last, self._frame[0].seq), self._frame, []
        return self._last, taken
