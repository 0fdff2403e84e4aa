"""Positions in sequenced streams: which seq follows which, and what is missing between them. Pure state, bounded.

A position is the highest seq seen of an upstream's sequence. An upstream whose sequence restarted refuses our cursor
(FutureCursor), and an operator decides; or it goes on at its tip without a word, and `restart` follows it: each connection
asked for with the old cursor would begin at the tip again. Gaps are facts for the record; the caller takes them away.
"""

from dataclasses import dataclass, field
from typing import Any

MAX_GAPS = 1000
"""Gaps held until they are taken; beyond it the newest one of an upstream grows instead."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequence numbers from..to (inclusive) of an upstream that were never received, or None where nobody knows them."""

    upstream: str
    from_seq: int | None
    to_seq: int | None
    reason: str


@dataclass(slots=True)
class Cursors:
    """Position of every upstream; `start` are the durable ones. `repeats` counts seqs that did not rise.

    `epochs`: which of an upstream's sequences its position belongs to, by the Unix time at which it was first followed (0: as
    long as anybody knows). `times`: the upstream's own time of the last event seen, none ahead of its receipt.
    """

    positions: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    times: dict[str, str] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    repeats: int = 0

    def see(self, upstream: str, seq: int) -> Gap | None:
        """Follow an upstream to this seq; the gap before it, if there is one."""
        last = self.positions.get(upstream)
        if last is None or seq == last + 1:
            self.positions[upstream] = seq
            return None
        if seq <= last:
            self.repeats += 1
            return None
        self.positions[upstream] = seq
        return self.lose(Gap(upstream, last + 1, seq - 1, "sequence_gap"))

    def restart(self, upstream: str, seq: int, now: int = 0) -> Gap | None:
        """Follow an upstream that counts anew and stands at this seq, at Unix time `now`. The gap: what it sent before."""
        if seq > self.positions.get(upstream, -1):
            return self.see(upstream, seq)
        self.positions[upstream] = seq
        self.epochs[upstream] = max(now, self.epochs.get(upstream, 0) + 1)
        return self.lose(Gap(upstream, None, None, "sequence_restarted"))

    def pass_by(self, upstream: str, seq: int) -> None:
        """A message that we do not understand: it uses up its seq where that is the next one, and may not jump."""
        if self.positions.get(upstream) == seq - 1:
            self.positions[upstream] = seq

    def lose(self, gap: Gap) -> Gap:
        """Note a loss. It is written down before a position passes it."""
        if len(self.gaps) >= MAX_GAPS:
            at = next((i for i in range(MAX_GAPS - 1, -1, -1) if self.gaps[i].upstream == gap.upstream), None)
            if at is not None:
                self.gaps[at] = Gap(gap.upstream, self.gaps[at].from_seq, gap.to_seq, gap.reason)
                return gap
        self.gaps.append(gap)
        return gap

    def detail(self, upstream: str) -> dict[str, Any]:
        """What is stored beside the upstream's position."""
        return {"epoch": self.epochs.get(upstream, 0), "time": self.times.get(upstream, "")}

    def take_gaps(self) -> list[Gap]:
        """The gaps noted so far, handed over."""
        taken, self.gaps = self.gaps, []
        return taken
