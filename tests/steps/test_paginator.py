"""Paging as values: a listing of a made-up upstream, with poison, outages and odd pages, always comes to its end."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steps.listing.list_page import ListEntry, PageFailure, PageTrouble, RepoPage, failure_of, read_page
from steps.listing.paginator import MAX_SKIPS, Listing, ListingDecision, ListingPolicy, RangeSkipped, decide, restart
from steps.listing.skip_ahead import beyond, reached

RELAY = ListingPolicy(page_size=100, skip_after=5, skip_step=1000, relay=True, recheck_seconds=300)
PDS = replace(RELAY, relay=False)
BAD = PageFailure(PageTrouble.BAD_ANSWER, "HTTP 500")
DOWN = PageFailure(PageTrouble.UNREACHABLE, "no answer")


def page(count: int, cursor: str | None) -> RepoPage:
    return RepoPage([ListEntry(f"did:plc:{cursor}{i}", "", True, None) for i in range(count)], 0, cursor)


def run(state: Listing, *outcomes: RepoPage | PageFailure, policy: ListingPolicy = RELAY) -> ListingDecision:
    decision = ListingDecision(state, 0)
    for outcome in outcomes:
        decision = decide(decision.state, outcome, 1000.0, policy)
    return decision


def test_pages_follow_each_other_to_the_end_and_a_recheck_starts_from_there() -> None:
    """B1"""
    decision = run(Listing(100), page(100, "100"), page(100, "200"))
    assert (decision.state.cursor, decision.wait_until, decision.ended) == ("200", 1000, False)
    decision = run(decision.state, page(7, None))
    assert decision.ended
    assert (decision.state.cursor, decision.state.done, decision.state.passes) == ("200", True, 1)
    assert decision.wait_until == 1300
    again = run(decision.state, page(100, "300"))
    assert (again.state.cursor, again.state.done, again.ended) == ("300", True, False)
    assert run(again.state, page(1, None)).state.passes == 1


@pytest.mark.parametrize("following", ["200", "150", ""])
def test_a_cursor_that_does_not_move_is_the_end(following: str) -> None:
    """B2: no page repeats for ever."""
    decision = run(Listing(100, cursor="200", safe="200"), RepoPage([], 0, following or None))
    assert decision.ended


def test_a_numeric_cursor_that_keeps_failing_is_skipped_and_the_range_reported() -> None:
    """B2"""
    state = Listing(100, cursor="200", safe="200")
    assert run(state, *[BAD] * 4).skip is None
    decision = run(state, *[BAD] * 5)
    assert decision.skip == RangeSkipped("200", "1200", "HTTP 500")
    assert decision.state.cursor == "1200"


def test_waits_grow_between_the_failures() -> None:
    state, waits = Listing(100, cursor="200"), []
    for _ in range(4):
        decision = decide(state, BAD, 1000.0, RELAY)
        state = decision.state
        waits.append(decision.wait_until - 1000)
    assert waits == [0.5, 1, 2, 4]


def test_the_first_page_of_a_relay_is_skipped() -> None:
    """B2"""
    assert run(Listing(100), *[BAD] * 5).skip == RangeSkipped("", "1000", "HTTP 500")


def test_skips_end_if_a_relay_answers_only_errors() -> None:
    """B2, G5: after many skips in a row the listing returns to the newest cursor that worked, reports it, and waits."""
    state = Listing(100, cursor="200", safe="200")
    skips = 0
    for _ in range(10_000):
        decision = decide(state, BAD, 1000.0, RELAY)
        skips += decision.skip is not None
        state = decision.state
        if decision.stuck:
            break
    assert skips == MAX_SKIPS
    assert (state.cursor, decision.wait_until, decision.stuck) == ("200", 1300, "HTTP 500")


def test_the_first_page_of_a_pds_is_narrowed_and_then_waited_for_but_never_looped() -> None:
    """B2"""
    state, requests = Listing(100), 0
    while True:
        decision = decide(state, BAD, 1000.0, PDS)
        state, requests = decision.state, requests + 1
        if decision.stuck:
            break
        assert requests < 50
    assert (state.cursor, state.size, decision.wait_until) == ("", 1, 1300)


def test_an_outage_moves_no_cursor_however_long_it_lasts() -> None:
    state = Listing(100, cursor="200", safe="200")
    decision = run(state, *[DOWN] * 500)
    assert (decision.state.cursor, decision.skip) == ("200", None)
    assert decision.wait_until == 1060
    assert decision.stuck == "no answer"


def test_throttling_is_not_a_failure_and_waits_as_long_as_asked() -> None:
    """R3"""
    state = Listing(100, cursor="200", safe="200", failures=4)
    decision = run(state, failure_of(429, None, 17.0))
    assert (decision.state, decision.wait_until) == (replace(state, throttles=1), 1017)
    assert run(state, failure_of(429, None, None)).wait_until == 1060
    assert run(state, failure_of(429, None, 1e9)).wait_until == 1000 + 3600
    assert run(state, failure_of(429, None, 0.0)).wait_until == 1001


def test_a_gateway_error_is_an_outage_an_error_of_the_page_is_not() -> None:
    assert failure_of(503, None, None).trouble is PageTrouble.UNREACHABLE
    assert failure_of(522, None, None).trouble is PageTrouble.UNREACHABLE
    assert failure_of(500, "InternalServerError", None) == PageFailure(
        PageTrouble.BAD_ANSWER, "HTTP 500 InternalServerError"
    )
    assert failure_of(400, "InvalidRequest", None).trouble is PageTrouble.BAD_ANSWER


def test_an_empty_page_behind_a_skip_is_not_taken_for_the_end_of_the_cursors() -> None:
    """B2: accounts that are created later within the skipped numbers are found by the re-check."""
    decision = run(Listing(100, cursor="200", safe="200"), *[BAD] * 5, page(0, None))
    assert decision.ended
    assert decision.state.cursor == "200"
    behind = run(Listing(100, cursor="200", safe="200"), *[BAD] * 5, page(3, None))
    assert behind.state.cursor == "1200"


def test_restart_lists_from_the_first_page_and_keeps_the_count_of_passes() -> None:
    state = restart(Listing(3, cursor="900", safe="900", passes=2, done=True, began=5, failures=3), 77.0, RELAY)
    assert state == Listing(100, passes=2, began=77.0)


def test_a_list_of_a_pds_that_never_ends_is_read_to_its_bound() -> None:
    """B8: a PDS can make up accounts without end; an honest one is at most as long as the bound, however often it is looked at."""
    policy = replace(PDS, most=250)
    decision = run(Listing(100), page(100, "100"), page(100, "200"), policy=policy)
    assert (decision.state.cursor, decision.state.entries, decision.stuck) == ("200", 200, None)
    over = run(decision.state, page(51, "300"), policy=policy)
    assert (over.state.cursor, over.wait_until, over.ended) == ("200", 1300, False)
    assert over.stuck == "it lists more than 250 repos"
    assert run(over.state, page(50, None), policy=policy).ended
    ends = [page(50, None)] * 9
    assert run(decision.state, *ends, policy=policy).state.entries == 200, "the last page is read again and again"
    assert run(decision.state, RepoPage([], 60, "300"), policy=policy).stuck, "entries that are none count as well"
    assert restart(over.state, 77.0, policy).entries == 0
    assert not run(Listing(100), *[page(100, str(at)) for at in range(100, 900, 100)]).stuck


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 299), max_size=4), st.booleans(), st.integers(1, 64))
def test_every_healthy_repo_is_listed_or_in_a_reported_range(poison: set[int], relay: bool, page_size: int) -> None:
    """B2: 300 repos, some of which break every page that holds them."""
    policy = replace(RELAY if relay else PDS, page_size=page_size, skip_step=10)
    state, seen, ranges, now = Listing(page_size), set[int](), list[tuple[int, int]](), 0.0
    for _ in range(20_000):
        start = int(state.cursor.partition("::")[0]) // (1 if relay else 1000) if state.cursor else 0
        wanted = list(range(start, 300))[: state.size]
        outcome: RepoPage | PageFailure = BAD
        if not poison.intersection(wanted):
            after = wanted[-1] + 1 if wanted else None
            cursor = None if after is None or after >= 300 else str(after) if relay else f"{after * 1000}::did:plc:x"
            outcome = page(len(wanted), cursor)
            seen |= set(wanted)
        decision = decide(state, outcome, now, policy)
        if decision.skip is not None:
            low, high = (
                int(c.partition("::")[0] or 0) // (1 if relay else 1000)
                for c in (decision.skip.from_cursor, decision.skip.to_cursor)
            )
            ranges.append((low, high))
        if decision.ended:
            break
        if decision.stuck:
            assert not relay
            assert 0 in poison  # only a PDS's first page cannot be skipped
            return
        state, now = decision.state, decision.wait_until
    else:
        pytest.fail("the listing did not come to its end")
    reported = {repo for low, high in ranges for repo in range(low, high)}
    assert set(range(300)) - seen <= reported
    assert poison <= reported
    if not relay:  # opaque pages are narrowed first: little is lost with the poison
        assert len(set(range(300)) - seen) <= 16 * len(poison)


@pytest.mark.parametrize(
    ("cursor", "skips", "relay", "wanted"),
    [
        ("", 0, True, "1000"),
        ("5", 0, True, "1005"),
        ("5", 3, False, "13"),
        ("", 0, False, None),
        ("abc", 0, True, None),
        ("1700000000000::did:plc:x", 0, False, "1700000001000::did:plc:x"),
        ("1700000000000::did:plc:x", 2, False, "1700000004000::did:plc:x"),
        ("-5", 0, True, None),
        ("９", 0, True, None),
        ("9" * 30, 0, True, None),
    ],
)
def test_beyond(cursor: str, skips: int, relay: bool, wanted: str | None) -> None:
    assert beyond(cursor, skips=skips, step=1000, relay=relay) == wanted


def test_reached() -> None:
    assert reached("1200", "1200")
    assert not reached("1199", "1200")
    assert reached("1700::did:b", "1700::did:a")
    assert not reached("1699::did:z", "1700::did:a")
    assert not reached("abc", "1700::did:a")


@pytest.mark.parametrize("cycle", [2, 3, 7, 40])
@pytest.mark.parametrize("lead", [0, 1, 5])
def test_repeating_opaque_cursors_end_the_pass(lead: int, cycle: int) -> None:
    """H5: a → b → a asked 1,200 times in the first minute, and its job was running for ever."""
    state, requests = Listing(100), 0
    while not state.done:
        at = requests if requests < lead + cycle else lead + (requests - lead) % cycle
        decision = decide(state, page(3, f"c{at}"), 1000.0, PDS)
        state, requests = decision.state, requests + 1
        assert requests <= 3 * (lead + cycle) + 3
    assert decision.ended
    assert (decision.stuck, state.cut, state.passes) == ("the cursors repeat",) * 2 + (0,)


def test_cut_passes_have_growing_intervals_until_one_reaches_the_end() -> None:
    """H5"""
    state, waits, requests = Listing(100), [], 0
    for _ in range(60):
        decision = decide(state, page(3, {"": "a", "a": "b", "b": "a"}[state.cursor]), 1000.0, PDS)
        state, requests = decision.state, requests + 1
        if decision.ended:
            waits.append(decision.wait_until - 1000)
    assert waits[:6] == [300, 600, 1200, 2400, 3600, 3600]
    assert requests / sum(waits) * 3600 < 10
    over = decide(state, page(1, None), 1000.0, PDS)
    assert (over.state.cut, over.state.rounds, over.state.passes) == ("", 0, 1)


@pytest.mark.parametrize("content", [0, 5])
def test_pages_with_new_cursors_but_no_new_repos_end_the_pass(content: int) -> None:
    """H5: they wait like failures, and are not read without end."""
    same = [ListEntry(f"did:plc:{i}", "", True, None) for i in range(content)]
    state, now, requests = Listing(100), 0.0, 0
    while not state.done:
        decision = decide(state, RepoPage(same, 0, f"c{requests}"), now, RELAY)
        state, now, requests = decision.state, decision.wait_until, requests + 1
        assert requests <= 40
    assert state.cut == "the pages contain no new repos"
    assert now > 300


@pytest.mark.parametrize(
    "body",
    [
        {"repos": None, "cursor": "x"},
        {"cursor": "x"},
        {},
        {"repos": {}},
        [],
        None,
        "text",
        {"repos": [], "cursor": {}},
        {"repos": [], "cursor": True},
        {"repos": [], "cursor": "x" * 1001},
        {"repos": [], "cursor": "ä" * 501},
        {"repos": [], "cursor": "a\x1b[2J"},
    ],
)
@pytest.mark.parametrize("policy", [RELAY, PDS])
def test_malformed_pages_end_the_pass_with_a_reason_and_skip_nothing(body: Any, policy: ListingPolicy) -> None:
    """H3, H5: a 2 KB cursor ended the flow; `repos: null` skipped range after range for ever."""
    failure = read_page(body, 0)
    assert isinstance(failure, PageFailure)
    state, now, requests = Listing(100, cursor="200", safe="200"), 0.0, 0
    while not state.done:
        decision = decide(state, failure, now, policy)
        state, now, requests = decision.state, decision.wait_until, requests + 1
        assert decision.skip is None
    assert (requests, state.cursor, decision.ended) == (5, "200", True)
    assert decision.stuck == state.cut == failure.detail


def test_an_empty_page_of_a_relay_written_in_go_is_the_end() -> None:
    """H5: `{"repos": null}` without a cursor."""
    assert read_page({"repos": None}, 0) == RepoPage([], 0, None)


OUTCOMES: dict[str, Any] = {
    "errors": lambda n: BAD,
    "silence": lambda n: DOWN,
    "nonsense": lambda n: PageFailure(PageTrouble.MALFORMED, "no page"),
    "429 at once": lambda n: PageFailure(PageTrouble.THROTTLED, "429", 0.0),
    "a cycle": lambda n: page(2, "abcd"[n % 4]),
    "empty pages": lambda n: RepoPage([], 0, f"c{n}"),
    "error, page, error": lambda n: page(1, "aabb"[n % 4]) if n % 2 else BAD,
    "429, page": lambda n: page(1, "aabb"[n % 4]) if n % 2 else PageFailure(PageTrouble.THROTTLED, "429", 0.0),
    "down, end": lambda n: page(0, None) if n % 2 else DOWN,
    "nonsense, end": lambda n: page(0, None) if n % 3 == 0 else PageFailure(PageTrouble.MALFORMED, "no page"),
}


@pytest.mark.parametrize("name", OUTCOMES)
@pytest.mark.parametrize("policy", [RELAY, replace(PDS, recheck_seconds=3600.0, longest_wait=3600.0)])
def test_an_upstream_that_always_fails_is_asked_at_growing_intervals(policy: ListingPolicy, name: str) -> None:
    """H5: requests in a simulated day; from its second hour on never more than 90 in one."""
    state, now, n, hours = Listing(100), 0.0, 0, [0] * 24
    while now < 24 * 3600:
        hours[int(now // 3600)] += 1
        decision = decide(state, OUTCOMES[name](n), now, policy)
        assert decision.wait_until > now or not isinstance(OUTCOMES[name](n), PageFailure)
        state, now, n = decision.state, decision.wait_until, n + 1
        assert hours[0] < 400, "without end at once"
    assert max(hours[1:]) <= 90
