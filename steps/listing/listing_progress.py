"""A checkpoint of the list_repos flow: what the pages emitted since the last commit change in the database."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from steps.listing.paginator import Listing, RangeSkipped


@dataclass(frozen=True, slots=True)
class RangeFilled:
    """The skipped range with this id was read to its end."""

    id: int


@dataclass(frozen=True, slots=True)
class RangeNarrowed:
    """Of the skipped range with this id only these ranges (from, to), one at least, still fail."""

    id: int
    left: list[tuple[str, str]]
    retry_count: int
    reason: str


@dataclass(slots=True)
class ListingTally:
    """Counts of repos. The `discover` step fills them in for each page."""

    listed: int = 0
    queued: int = 0
    duplicates: int = 0


Fact = RangeSkipped | RangeFilled | RangeNarrowed


@dataclass(slots=True, eq=False)
class ListingProgress:
    """Changes by upstream (target key). `ended`: upstreams that reached their end, also those that did so before."""

    states: dict[str, Listing] = field(default_factory=dict)
    facts: list[tuple[str, Fact]] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    counts: list[tuple[str, ListingTally]] = field(default_factory=list)
    pages: int = 0

    def add(self, upstream: str, state: Listing | None, facts: Iterable[Fact], tally: ListingTally) -> None:
        """One more page. `state`: of the listing after it; None if it belongs to a skipped range."""
        self.pages += 1
        self.counts.append((upstream, tally))
        self.facts += [(upstream, fact) for fact in facts]
        if state is not None:
            self.states[upstream] = state
            if state.done:
                self.ended.add(upstream)

    def tallies(self) -> dict[str, ListingTally]:
        """The sum of the counts of each upstream that has any."""
        totals: dict[str, ListingTally] = {}
        for upstream, tally in self.counts:
            if tally != ListingTally():
                total = totals.setdefault(upstream, ListingTally())
                total.listed += tally.listed
                total.queued += tally.queued
                total.duplicates += tally.duplicates
        return totals
