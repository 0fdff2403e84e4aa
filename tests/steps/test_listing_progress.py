"""A checkpoint of the crawl carries everything that its commit writes."""

from __future__ import annotations

from steps.listing.listing_progress import ListingProgress, ListingTally, RangeFilled
from steps.listing.paginator import Listing


def test_counts_filled_in_after_the_pages_were_added_are_summed_by_listing() -> None:
    progress = ListingProgress()
    tallies = [ListingTally() for _ in range(4)]
    for upstream, tally in zip(("relay", "pds", "relay", "idle"), tallies, strict=True):
        progress.add(upstream, None, [], tally)
    tallies[0].listed, tallies[0].queued = 5, 2
    tallies[2].listed, tallies[2].duplicates = 10, 3
    tallies[1].queued = 1
    assert progress.tallies() == {"relay": ListingTally(15, 2, 3), "pds": ListingTally(queued=1)}


def test_a_commit_that_is_repeated_writes_the_same() -> None:
    """H1: the database was away at a commit: counts, facts and states are still there, and the counts are not doubled."""
    progress, tally = ListingProgress(), ListingTally()
    end = Listing(100, cursor="7", done=True)
    progress.add("relay", Listing(100, cursor="5"), [], tally)
    progress.add("relay", end, [RangeFilled(1)], ListingTally())
    tally.listed = 5
    for _ in range(2):
        assert progress.tallies() == {"relay": ListingTally(listed=5)}
        assert progress.facts == [("relay", RangeFilled(1))]
        assert (progress.states, progress.ended, progress.pages) == ({"relay": end}, {"relay"}, 2)


def test_a_page_of_a_skipped_range_moves_no_listing() -> None:
    progress = ListingProgress()
    progress.add("relay", None, [], ListingTally(listed=3))
    assert (progress.states, progress.ended, progress.pages) == ({}, set(), 1)
