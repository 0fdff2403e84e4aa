"""What a listing flow has seen and not made durable yet."""

from __future__ import annotations

from steps.listing.progress import Filled, Standing


def test_what_could_not_be_made_durable_is_taken_again() -> None:
    """H1: the database was away at a commit; the next try writes the same counts and facts, and what came since."""
    standing = Standing()
    standing.tally("relay").listed += 5
    standing.tally("relay").queued += 2
    standing.tally("relay").duplicates += 3
    standing.facts.append(("relay", Filled(1)))
    standing.ended.add("relay")
    taken = standing.take_tallies(), standing.take_facts(), standing.take_ended()
    standing.tally("relay").listed += 10
    standing.tally("pds").queued += 1
    standing.facts.append(("relay", Filled(2)))
    standing.give_back(*taken)
    tallies = standing.take_tallies()
    assert (tallies["relay"].listed, tallies["relay"].queued, tallies["relay"].duplicates) == (15, 2, 3)
    assert tallies["pds"].queued == 1
    assert standing.take_facts() == [("relay", Filled(1)), ("relay", Filled(2))]
    assert standing.take_ended() == {"relay"}


def test_counts_that_were_put_back_already_are_not_counted_twice() -> None:
    """A fill's counts wait for its listing's first position; a commit that fails then gives them back as well."""
    standing = Standing()
    standing.tally("relay").listed += 5
    tallies = standing.take_tallies()
    standing.tallies["relay"] = tallies["relay"]
    standing.give_back(tallies, [], set())
    assert standing.take_tallies()["relay"].listed == 5
