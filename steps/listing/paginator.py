"""Paging through listRepos: a pure state machine. Never raises on wire input.

`decide(state, answer, now, policy) -> ListingDecision`: what a page or a failure changes. The next request is for
`state.cursor` and `state.size`, not before `ListingDecision.wait_until`. Times are seconds since 1970.

    page with a new cursor           request its next page at once
    no cursor, or an unchanged one   the end: a re-check starts from the end's own cursor after `recheck_seconds`
    429                              wait as long as the server asks; not a failure
    no answer                        wait, longer each time; the cursor is not at fault
    error answer                     wait; after `skip_after` of them at one cursor skip it (steps.listing.skip_ahead); if
                                     cursors are opaque, only after narrowing the page to the one entry that fails
    200 without a valid page         wait; after `skip_after` of them end the pass: no other cursor would help
    cursors that repeat              end the pass
    pages with nothing new           wait as after a failure; after many of them end the pass
    more entries than `most`         stop before them: anyone can run a PDS and list invented names

A pass that ends before the end of the list has a reason (`Listing.cut`, `ListingDecision.stuck`). Each such pass in a row
doubles the wait before the next, up to an hour.
"""

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from steps.backoff import backoff_seconds
from steps.listing.list_page import PageFailure, PageTrouble, RepoPage
from steps.listing.skip_ahead import beyond, is_number

MAX_SKIPS = 20  # in a row without a page: then the whole listing fails, not a range of it
GROW_AFTER = 4  # good pages of a narrowed size before it is doubled
MAX_BARREN = 20  # pages of a pass with nothing new, plus one for every four pages of the pass
LONGEST_ROUND_SECONDS = 3600.0
LONGEST_THROTTLE_SECONDS = 3600.0
THROTTLE_SECONDS = 60.0  # after a 429 without Retry-After


@dataclass(frozen=True, slots=True)
class ListingPolicy:
    """Parameters of a listing. `relay`: its cursors are those of a relay; `most`: entries to read at most. Times in seconds."""

    page_size: int
    skip_after: int
    skip_step: int
    relay: bool
    recheck_seconds: float
    most: int | None = None
    first_wait: float = 0.5
    longest_wait: float = 60.0


@dataclass(frozen=True, slots=True)
class Listing:
    """The state of one listing. `cursor`: of the next request; '' is the first page.

    safe           the newest cursor that the upstream itself returned
    entries        entries before the cursor
    passes, done   completed passes, and whether the newest one has ended; `began`: when it began
    cut, rounds    why the newest pass ended before the end of the list, and how many such passes there were in a row
    failures, outages, throttles   error answers at this cursor, requests without an answer, 429s: each in a row
    skips, streak  ranges skipped, and pages read, in a row
    pages, barren  of this pass: all pages, and those with nothing new
    mark, content  hashes of one remembered page: of its cursor and of its repos
    """

    size: int
    cursor: str = ""
    safe: str = ""
    entries: int = 0
    passes: int = 0
    done: bool = False
    began: float = 0.0
    failures: int = 0
    outages: int = 0
    skips: int = 0
    streak: int = 0
    throttles: int = 0
    cut: str = ""
    rounds: int = 0
    pages: int = 0
    barren: int = 0
    mark: int = 0
    content: int = 0


@dataclass(frozen=True, slots=True)
class RangeSkipped:
    """A range of cursors that was skipped: from the page at `from_cursor` up to `to_cursor`."""

    from_cursor: str
    to_cursor: str
    reason: str


@dataclass(frozen=True, slots=True)
class ListingDecision:
    """The new state, when the next request may go out, what was skipped, whether the pass ended, and what is wrong."""

    state: Listing
    wait_until: float
    skip: RangeSkipped | None = None
    ended: bool = False
    stuck: str | None = None


def decide(state: Listing, answer: RepoPage | PageFailure, now: float, policy: ListingPolicy) -> ListingDecision:
    """See the table in the module docstring."""
    if isinstance(answer, RepoPage):
        return _page(state, answer, now, policy)
    if answer.trouble is PageTrouble.THROTTLED:
        asked = THROTTLE_SECONDS if answer.retry_after is None else answer.retry_after
        least = min(2.0**state.throttles, policy.longest_wait)  # for servers that repeat 429 with Retry-After: 0
        throttled = replace(state, throttles=min(state.throttles + 1, 20))
        return ListingDecision(throttled, now + min(max(asked, least), LONGEST_THROTTLE_SECONDS))
    if answer.trouble is PageTrouble.UNREACHABLE:
        outages = state.outages + 1
        wait = max(_wait_seconds(outages, policy), min(answer.retry_after or 0.0, LONGEST_THROTTLE_SECONDS))
        stuck = answer.detail if outages >= policy.skip_after else None
        return ListingDecision(replace(state, outages=outages), now + wait, stuck=stuck)
    if answer.trouble is PageTrouble.MALFORMED:
        failed = replace(state, failures=state.failures + 1, streak=0, outages=0)
        if failed.failures < policy.skip_after:
            return ListingDecision(failed, now + _wait_seconds(failed.failures, policy))
        return _cut(failed, answer.detail, now, policy)
    return _bad_answer(state, answer, now, policy)


def restart(state: Listing, now: float, policy: ListingPolicy) -> Listing:
    """Start another pass from the first page; the number of completed passes is kept."""
    return Listing(size=policy.page_size, passes=state.passes, began=now, rounds=state.rounds)


def _page(state: Listing, page: RepoPage, now: float, policy: ListingPolicy) -> ListingDecision:
    size, streak = state.size, state.streak + 1
    if size < policy.page_size and streak >= GROW_AFTER:
        size, streak = min(size * 2, policy.page_size), 0
    calm = replace(state, size=size, streak=streak, failures=0, outages=0, throttles=0, skips=0)
    entries = state.entries + len(page.entries) + page.rejected
    if policy.most is not None and entries > policy.most:
        return ListingDecision(calm, now + policy.recheck_seconds, stuck=f"it lists more than {policy.most} repos")
    if page.cursor and not _goes_round(state.cursor, page.cursor):
        return _further(replace(calm, entries=entries), page, page.cursor, now, policy)
    # after a skipped range an empty page does not prove the end of the list
    behind = state.skips > 0 and not page.entries
    passes = state.passes if state.done and not state.cut else state.passes + 1
    rounds = state.rounds + 1 if behind else 0
    ended = replace(
        calm,
        cursor=state.safe if behind else state.cursor,
        done=True,
        passes=passes,
        size=policy.page_size,
        **_FRESH | {"rounds": rounds},
    )
    return ListingDecision(ended, now + _between_rounds(rounds, policy), ended=True)


_FRESH: dict[str, Any] = {"cut": "", "rounds": 0, "pages": 0, "barren": 0, "mark": 0, "content": 0}


def _further(state: Listing, page: RepoPage, cursor: str, now: float, policy: ListingPolicy) -> ListingDecision:
    """Continue with the next page, unless the pages repeat.

    Brent's cycle detection: one page is remembered, and replaced by the newest whenever the number of pages has doubled.
    Any cycle is found before it has been read three times, in constant memory.
    """
    mark, content = _hash(cursor), _hash(*(entry.did for entry in page.entries))
    if state.pages and mark == state.mark:
        return _cut(state, "the cursors repeat", now, policy)
    barren = state.barren + (not page.entries or (state.pages > 0 and content == state.content))
    if barren > MAX_BARREN + state.pages // 4:
        return _cut(state, "the pages contain no new repos", now, policy)
    wait = _wait_seconds(barren, policy) if barren > state.barren else 0.0
    pages = state.pages + 1
    if pages & (pages - 1):
        mark, content = state.mark, state.content
    moved = replace(state, cursor=cursor, safe=cursor, pages=pages, barren=barren, mark=mark, content=content)
    return ListingDecision(moved, now + wait)


def _cut(state: Listing, why: str, now: float, policy: ListingPolicy) -> ListingDecision:
    """End a pass before the end of the list. The next pass continues at its cursor."""
    rounds = state.rounds + 1
    ended = replace(state, done=True, failures=0, skips=0, **_FRESH | {"cut": why, "rounds": rounds})
    return ListingDecision(ended, now + _between_rounds(rounds, policy), ended=True, stuck=why)


def _between_rounds(rounds: int, policy: ListingPolicy) -> float:
    return max(policy.recheck_seconds, backoff_seconds(max(rounds, 1), policy.recheck_seconds, LONGEST_ROUND_SECONDS))


def _hash(*texts: str) -> int:
    return int.from_bytes(blake2b("\n".join(texts).encode(), digest_size=8).digest())


def _bad_answer(state: Listing, failure: PageFailure, now: float, policy: ListingPolicy) -> ListingDecision:
    failures = state.failures + 1
    failed = replace(state, failures=failures, streak=0, outages=0)
    opaque = not policy.relay or not (state.cursor == "" or is_number(state.cursor))
    narrowed = opaque and state.size < policy.page_size
    if failures < policy.skip_after and not (narrowed and state.size > 1):
        return ListingDecision(failed, now + _wait_seconds(failures, policy))
    if opaque and state.size > 1:
        return ListingDecision(replace(failed, size=state.size // 2, failures=0), now + policy.first_wait)
    to = beyond(state.cursor, skips=state.skips, step=policy.skip_step, relay=policy.relay)
    if to is None or state.skips >= max(1, MAX_SKIPS >> min(state.rounds, 10)):
        # everything fails, not only a range: return to the newest cursor that worked, and wait
        rounds = state.rounds + 1
        # where cursors cannot be skipped, one failure is enough the next time
        failures = policy.skip_after - 1 if to is None else 0
        cursor = state.safe if state.skips else state.cursor
        back = replace(failed, cursor=cursor, failures=failures, skips=0, rounds=rounds)
        return ListingDecision(back, now + _between_rounds(rounds, policy), stuck=failure.detail)
    moved = replace(failed, cursor=to, failures=0, skips=state.skips + 1, size=policy.page_size)
    return ListingDecision(moved, now + policy.first_wait, skip=RangeSkipped(state.cursor, to, failure.detail))


def _goes_round(cursor: str, following: str) -> bool:
    """Whether the next page's cursor equals this page's, or is a lower number."""
    if following == cursor:
        return True
    return is_number(cursor) and is_number(following) and int(following) <= int(cursor)


def _wait_seconds(count: int, policy: ListingPolicy) -> float:
    return backoff_seconds(count, policy.first_wait, policy.longest_wait)
