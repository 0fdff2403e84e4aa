"""Positions in sequenced streams, and the gaps in them. Pure state, bounded.

A position is the highest seq seen of an upstream's sequence. An upstream that restarted its sequence either rejects our cursor
(FutureCursor), and an operator decides; or it accepts the cursor and sends its newest events. Then `restart` follows the new
sequence, because each reconnect with the old cursor would skip to the newest event again. The caller stores the gaps.
"""

from dataclasses import dataclass, field
from typing import Any

MAX_GAPS = 1000
"""Gaps kept until the caller takes them. Beyond it, the newest gap of the upstream is extended instead."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Seqs of an upstream that were never received, `from_seq` to `to_seq` inclusive; None if unknown."""

    upstream: str
    from_seq: int | None
    to_seq: int | None
    reason: str


@dataclass(slots=True)
class Cursors:
    """The position of every upstream.

    `epochs`: the sequence that a position belongs to, as the Unix time when it was first followed; 0 for the first one. `times`:
    the upstream's own time of the last event seen, at most the time of receipt.
    """

    positions: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    times: dict[str, str] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)

    def advance(self, upstream: str, seq: int) -> Gap | None:
        """Move the position to this seq. Returns the gap before it, if any."""
        last = self.positions.get(upstream)
        if last is None or seq == last + 1:
            self.positions[upstream] = seq
            return None
        if seq <= last:
            return None
        self.positions[upstream] = seq
        return self.record_gap(Gap(upstream, last + 1, seq - 1, "sequence_gap"))

    def restart(self, upstream: str, seq: int, now: int = 0) -> Gap | None:
        """Follow a restarted sequence from this seq on. `now`: Unix time. Returns the gap, which is unbounded."""
        if seq > self.positions.get(upstream, -1):
            return self.advance(upstream, seq)
        self.positions[upstream] = seq
        self.epochs[upstream] = max(now, self.epochs.get(upstream, 0) + 1)
        return self.record_gap(Gap(upstream, None, None, "sequence_restarted"))

    def pass_by(self, upstream: str, seq: int) -> None:
        """Pass the seq of a frame that was not read completely. It may only move the position by one."""
        if self.positions.get(upstream) == seq - 1:
            self.positions[upstream] = seq

    def record_gap(self, gap: Gap) -> Gap:
        """Record a gap; returns it. It is stored before, or together with, the position behind it."""
        if len(self.gaps) >= MAX_GAPS:
            at = next((i for i in range(MAX_GAPS - 1, -1, -1) if self.gaps[i].upstream == gap.upstream), None)
            if at is not None:
                self.gaps[at] = Gap(gap.upstream, self.gaps[at].from_seq, gap.to_seq, gap.reason)
                return gap
        self.gaps.append(gap)
        return gap

    def detail(self, upstream: str) -> dict[str, Any]:
        """The detail stored with the upstream's position."""
        return {"epoch": self.epochs.get(upstream, 0), "time": self.times.get(upstream, "")}

    def take_gaps(self) -> list[Gap]:
        """Remove and return the recorded gaps."""
        taken, self.gaps = self.gaps, []
        return taken
