"""What a listing flow has seen and not yet made durable: positions, and the facts that must be written before they move.

Moved by the flow's steps, taken by its source at a commit. Everything noted belongs to pages that were already polled.
"""

from dataclasses import dataclass, field

from steps.listing.paginator import Listing, Skip


@dataclass(frozen=True, slots=True)
class Filled:
    """The skipped range with this id was read to its end."""

    id: int


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Of the skipped range with this id only these ranges (from, to), one at least, are left. They still fail."""

    id: int
    left: list[tuple[str, str]]
    retry_count: int
    reason: str


@dataclass(slots=True)
class Tally:
    """Counts of a listing since the last commit."""

    listed: int = 0
    queued: int = 0
    duplicates: int = 0


Fact = tuple[str, Skip | Filled | Narrowed]  # (upstream, what happened)


@dataclass(slots=True)
class Standing:
    """Positions by upstream (full URL), the facts before them, and the counts of what was found."""

    positions: dict[str, Listing] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)  # upstreams whose listing came to its end, also once more
    notes: int = 0  # pages seen; facts and counts are written where no listing moves, too

    def tally(self, upstream: str) -> Tally:
        """The counts of an upstream."""
        return self.tallies.setdefault(upstream, Tally())

    def take_facts(self) -> list[Fact]:
        """The facts noted so far, handed over."""
        taken, self.facts = self.facts, []
        return taken

    def take_ended(self) -> set[str]:
        """The upstreams that came to their end, handed over."""
        taken, self.ended = self.ended, set()
        return taken

    def give_back(self, tallies: dict[str, Tally], facts: list[Fact], ended: set[str]) -> None:
        """What was taken and could not be made durable: it is taken again, before anything newer."""
        for upstream, old in tallies.items():
            new = self.tallies.setdefault(upstream, old)
            if new is old:
                continue
            new.listed, new.queued = old.listed + new.listed, old.queued + new.queued
            new.duplicates += old.duplicates
        self.facts = facts + self.facts
        self.ended |= ended

    def take_tallies(self) -> dict[str, Tally]:
        """The counts so far, handed over."""
        taken, self.tallies = self.tallies, {}
        return taken
