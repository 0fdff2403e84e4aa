"""Rounds of a skipped range as values: what answers is taken, what fails shrinks to itself, and no round is without end."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.listing.list_page import ListEntry, PageFailure, PageTrouble, RepoPage
from steps.listing.range_fill import FIRST_FAILURES, LEAST_FAILURES, MAX_PIECES, MAX_REQUESTS, begin

BAD = PageFailure(PageTrouble.BAD_ANSWER, "HTTP 500")
Server = Callable[[str, int], RepoPage | PageFailure]


def numbered(bad: set[int], *, repos: int = 150, most: int = 20) -> Server:
    """Repos 1..n behind numeric cursors, pages of `most` at the most, none where it would hold a bad one."""

    def answer(cursor: str, limit: int) -> RepoPage | PageFailure:
        ids = list(range(int(cursor or 0) + 1, repos + 1))[: min(limit, most)]
        if bad.intersection(ids):
            return BAD
        entries = [ListEntry(f"did:plc:{number}", "", True, None) for number in ids]
        return RepoPage(entries, 0, str(ids[-1]) if ids and ids[-1] < repos else None)

    return answer


def timed(bad: set[int], *, repos: int = 150) -> Server:
    """The same behind `<millis>::<did>`, a second apart."""
    inner = numbered(bad, repos=repos, most=1000)

    def answer(cursor: str, limit: int) -> RepoPage | PageFailure:
        after = -(-int(cursor.partition("::")[0] or 0) // 1000)
        page = inner(str(after), limit)
        if isinstance(page, PageFailure) or page.cursor is None:
            return page
        return RepoPage(page.entries, 0, f"{int(page.cursor) * 1000}::did:plc:{page.cursor}")

    return answer


def run(server: Server, start: str, end: str, retry_count: int = 0) -> tuple[list[tuple[str, str]], set[int], int, str]:
    """(what is left, repos seen, requests, furthest cursor) of one round."""
    fill, seen, requests = begin(start, end, 1000, retry_count), set[int](), 0
    while (piece := fill.next()) is not None:
        requests += 1
        outcome = server(piece.from_cursor, piece.size)
        if isinstance(outcome, PageFailure):
            fill.failed(piece, outcome)
        else:
            seen |= {int(entry.did.rpartition(":")[2]) for entry in outcome.entries}
            fill.answered(piece, outcome)
    return fill.left(), seen, requests, fill.furthest


def test_a_range_that_always_fails_is_isolated_within_fifty_requests() -> None:
    """N6, H5: repos 41 to 60 fail, pages hold 20; everything else of 40 → 1040 is found, once."""
    left, seen, requests, furthest = run(numbered(set(range(41, 61))), "40", "1040")
    assert left == [("40", "60")]
    assert seen == set(range(61, 151))
    assert requests <= 50
    assert furthest == "142"


def test_what_answers_again_is_read_to_its_end() -> None:
    """N6: without faults there is nothing left; the end of the list ends the range."""
    assert run(numbered(set()), "40", "1040") == ([], set(range(41, 151)), 6, "140")
    assert run(numbered(set()), "40", "60")[:2] == ([], set(range(41, 61)))


def test_a_range_of_time_is_halved_as_well() -> None:
    """B2: cursors of the reference PDS."""
    left, seen, requests, _ = run(timed({70}), "40000::did:plc:40", "1064000::did:plc:40")
    assert seen == set(range(41, 151)) - {70}
    assert requests < 70
    assert len(left) == 1
    low, high = (int(cursor.partition("::")[0]) for cursor in left[0])
    assert high - low <= 1000


def test_an_opaque_cursor_is_asked_for_in_smaller_pages_and_then_waited_for() -> None:
    left, _, requests, _ = run(lambda *_: BAD, "opaque", "other")
    assert left == [("opaque", "other")]
    assert requests == 10


def test_later_rounds_send_fewer_requests() -> None:
    """H5"""
    requests = [run(lambda *_: BAD, "0", "1000000", retry)[2] for retry in range(6)]
    assert requests == [FIRST_FAILURES, 18, *[LEAST_FAILURES] * 4]


@pytest.mark.parametrize("trouble", [PageTrouble.UNREACHABLE, PageTrouble.THROTTLED])
def test_an_outage_ends_the_round_and_keeps_the_range(trouble: PageTrouble) -> None:
    """R3"""
    assert run(lambda *_: PageFailure(trouble, "no"), "40", "1040") == ([("40", "1040")], set(), 1, "")


@pytest.mark.parametrize("cursor", ["40", "39", "0", "x"])
def test_a_cursor_that_does_not_move_ends_a_round(cursor: str) -> None:
    """H5"""
    _, _, requests, _ = run(lambda *_: RepoPage([], 0, cursor), "40", "1040")
    assert requests <= MAX_REQUESTS


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(1, 400), max_size=12), st.integers(1, 50), st.integers(0, 5))
def test_every_repo_of_a_range_is_read_or_left(bad: set[int], most: int, retry: int) -> None:
    """N6: for any poison, whatever the pages hold; pieces stay few, and a round is bounded."""
    left, seen, requests, _ = run(numbered(bad, repos=400, most=most), "100", "400", retry)
    remaining = {repo for low, high in left for repo in range(int(low) + 1, int(high) + 1)}
    assert set(range(101, 401)) - seen <= remaining
    assert len(left) <= MAX_PIECES
    assert requests <= MAX_REQUESTS
