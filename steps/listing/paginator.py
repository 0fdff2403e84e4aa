"""Paging through listRepos: a pure state machine. Never raises on wire input.

`decide(state, outcome, now, policy) -> Decision`: what a page or a failure makes of a listing; the next request is
`state.cursor` and `state.size`, not before `Decision.wait_until`. Times are seconds since 1970.

    page with a new cursor           go on there, at once
    no cursor, or an unchanged one   the end: a re-check starts from the end's own cursor after `recheck_seconds`
    429                              wait as long as the server says; not a failure
    nobody answers                   wait, ever longer; the cursor is innocent
    a bad answer                     wait; after `skip_after` of them at one cursor step over it (steps.listing.skip_ahead), where
                                     cursors are opaque after narrowing the page to the one entry that is poisoned
    no page in a 200 answer          wait; after `skip_after` of them the pass ends: no cursor will help
    cursors that go round            the pass ends
    pages that bring nothing new     wait, as after a failure; after many of them the pass ends
    more entries than `most`         stand still before them: anyone can run a PDS and list names that he makes up

A pass that ends without the list's end says why (`Listing.cut`, `Decision.stuck`), and each one in a row waits twice as
long for the next, up to an hour.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b
from typing import Any

import msgspec

from protocol.account_status import is_served
from protocol.encoding.safe_text import is_printable, printable
from protocol.syntax import is_did, is_tid, tid_micros
from steps.backoff import backoff_seconds
from steps.listing.skip_ahead import beyond, is_number

MAX_SKIPS = 20  # in a row without one page: then the listing itself is broken, not a range of it
GROW_AFTER = 4  # good pages of a narrowed size before it is doubled
MAX_CURSOR_BYTES = 1000  # two of them and a URL fit into one row of an index
MAX_BARREN = 20  # pages of a pass that bring nothing new, and as many again for every 4 * MAX_BARREN that do
LONGEST_ROUND_SECONDS = 3600.0
FUTURE_MICROS = 300 * 1_000_000
LONGEST_THROTTLE_SECONDS = 3600.0
THROTTLE_SECONDS = 60.0  # of a 429 that names no time


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One repo of a page; `rev` is '' where the page has none that can be one; `active`: its PDS serves it."""

    did: str
    rev: str
    active: bool
    status: str | None


class Page(msgspec.Struct, frozen=True):
    """A page that was read: its repos, how many entries were none, and the cursor of the next page."""

    entries: list[Entry]
    rejected: int
    cursor: str | None


class Trouble(StrEnum):
    """What went wrong with a request."""

    BAD_ANSWER = "bad_answer"  # an error about this page
    MALFORMED = "malformed"  # an answer that is no page
    THROTTLED = "throttled"
    UNREACHABLE = "unreachable"  # no answer, or one that a gateway gave


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without a page. `retry_after` in seconds, where the server named it."""

    trouble: Trouble
    detail: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """How a listing behaves; `relay`: its cursors are a relay's."""

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
    """Where a listing stands. '' is the first page. `safe`: the newest cursor that the upstream itself gave; `entries`: how many
    there are before the cursor. `cut`: why the newest pass ended without the list's end, `rounds`: how many in a row did.
    `pages`, `barren`: of this pass, all and those with nothing new; `mark`, `content`: hashes of one remembered page's cursor
    and repos."""

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
class Skip:
    """A range of cursors that was stepped over, `from_cursor` (incl. the page behind it) up to `to_cursor`."""

    from_cursor: str
    to_cursor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The listing's new state, when it may ask again, what it stepped over, and whether it just reached the end."""

    state: Listing
    wait_until: float
    skip: Skip | None = None
    ended: bool = False
    stuck: str | None = None


def decide(state: Listing, outcome: Page | Failure, now: float, policy: Policy) -> Decision:
    """See the table above."""
    if isinstance(outcome, Page):
        return _page(state, outcome, now, policy)
    if outcome.trouble is Trouble.THROTTLED:
        asked = THROTTLE_SECONDS if outcome.retry_after is None else outcome.retry_after
        least = min(2.0**state.throttles, policy.longest_wait)  # one that asks for nothing, again and again
        throttled = replace(state, throttles=min(state.throttles + 1, 20))
        return Decision(throttled, now + min(max(asked, least), LONGEST_THROTTLE_SECONDS))
    if outcome.trouble is Trouble.UNREACHABLE:
        outages = state.outages + 1
        wait = max(_backoff(outages, policy), min(outcome.retry_after or 0.0, LONGEST_THROTTLE_SECONDS))
        stuck = outcome.detail if outages >= policy.skip_after else None
        return Decision(replace(state, outages=outages), now + wait, stuck=stuck)
    if outcome.trouble is Trouble.MALFORMED:
        failed = replace(state, failures=state.failures + 1, streak=0, outages=0)
        if failed.failures < policy.skip_after:
            return Decision(failed, now + _backoff(failed.failures, policy))
        return _cut(failed, outcome.detail, now, policy)
    return _bad_answer(state, outcome, now, policy)


def restart(state: Listing, now: float, policy: Policy) -> Listing:
    """The same upstream anew from its first page; what was completed stays counted."""
    return Listing(size=policy.page_size, passes=state.passes, began=now, rounds=state.rounds)


def _page(state: Listing, page: Page, now: float, policy: Policy) -> Decision:
    size, streak = state.size, state.streak + 1
    if size < policy.page_size and streak >= GROW_AFTER:
        size, streak = min(size * 2, policy.page_size), 0
    calm = replace(state, size=size, streak=streak, failures=0, outages=0, throttles=0, skips=0)
    entries = state.entries + len(page.entries) + page.rejected
    if policy.most is not None and entries > policy.most:
        return Decision(calm, now + policy.recheck_seconds, stuck=f"it lists more than {policy.most} repos")
    if page.cursor and not _goes_round(state.cursor, page.cursor):
        return _further(replace(calm, entries=entries), page, page.cursor, now, policy)
    # behind a stepped-over range an empty page proves nothing about where the end is
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
    return Decision(ended, now + _between_rounds(rounds, policy), ended=True)


_FRESH: dict[str, Any] = {"cut": "", "rounds": 0, "pages": 0, "barren": 0, "mark": 0, "content": 0}


def _further(state: Listing, page: Page, cursor: str, now: float, policy: Policy) -> Decision:
    """On to the next page, unless the pages repeat.

    One page is remembered, and replaced by the newest whenever the number of pages has doubled (Brent): a cycle of any
    length is found before it has been read three times, and nothing grows.
    """
    mark, content = _hash(cursor), _hash(*(entry.did for entry in page.entries))
    if state.pages and mark == state.mark:
        return _cut(state, "its cursors go round", now, policy)
    barren = state.barren + (not page.entries or (state.pages > 0 and content == state.content))
    if barren > MAX_BARREN + state.pages // 4:
        return _cut(state, "its pages bring nothing new", now, policy)
    wait = _backoff(barren, policy) if barren > state.barren else 0.0
    pages = state.pages + 1
    if pages & (pages - 1):
        mark, content = state.mark, state.content
    moved = replace(state, cursor=cursor, safe=cursor, pages=pages, barren=barren, mark=mark, content=content)
    return Decision(moved, now + wait)


def _cut(state: Listing, why: str, now: float, policy: Policy) -> Decision:
    """End a pass that has no end. What it listed is listed; the next pass goes on from here."""
    rounds = state.rounds + 1
    ended = replace(state, done=True, failures=0, skips=0, **_FRESH | {"cut": why, "rounds": rounds})
    return Decision(ended, now + _between_rounds(rounds, policy), ended=True, stuck=why)


def _between_rounds(rounds: int, policy: Policy) -> float:
    return max(policy.recheck_seconds, backoff_seconds(max(rounds, 1), policy.recheck_seconds, LONGEST_ROUND_SECONDS))


def _hash(*texts: str) -> int:
    return int.from_bytes(blake2b("\n".join(texts).encode(), digest_size=8).digest())


def _bad_answer(state: Listing, failure: Failure, now: float, policy: Policy) -> Decision:
    failures = state.failures + 1
    failed = replace(state, failures=failures, streak=0, outages=0)
    opaque = not policy.relay or not (state.cursor == "" or is_number(state.cursor))
    narrowed = opaque and state.size < policy.page_size
    if failures < policy.skip_after and not (narrowed and state.size > 1):
        return Decision(failed, now + _backoff(failures, policy))
    if opaque and state.size > 1:
        return Decision(replace(failed, size=state.size // 2, failures=0), now + policy.first_wait)
    to = beyond(state.cursor, skips=state.skips, step=policy.skip_step, relay=policy.relay)
    if to is None or state.skips >= max(1, MAX_SKIPS >> min(state.rounds, 10)):
        # not a poisoned range: nothing answers. Back to firm ground, and wait
        rounds = state.rounds + 1
        # where cursors cannot be stepped over, one failure is enough the next time
        failures = policy.skip_after - 1 if to is None else 0
        cursor = state.safe if state.skips else state.cursor
        back = replace(failed, cursor=cursor, failures=failures, skips=0, rounds=rounds)
        return Decision(back, now + _between_rounds(rounds, policy), stuck=failure.detail)
    moved = replace(failed, cursor=to, failures=0, skips=state.skips + 1, size=policy.page_size)
    return Decision(moved, now + policy.first_wait, skip=Skip(state.cursor, to, failure.detail))


def _goes_round(cursor: str, following: str) -> bool:
    """The next page's cursor is this page's, or a number below it."""
    if following == cursor:
        return True
    return is_number(cursor) and is_number(following) and int(following) <= int(cursor)


def _backoff(count: int, policy: Policy) -> float:
    return backoff_seconds(count, policy.first_wait, policy.longest_wait)


def read_page(body: Any, now_micros: int) -> Page | Failure:
    """The JSON of a listRepos answer. A bad entry is dropped, not the page; a rev from the future is none."""
    if not isinstance(body, dict):
        return Failure(Trouble.MALFORMED, "the answer is no object")
    cursor = page_cursor(body)
    if isinstance(cursor, Failure):
        return cursor
    repos = body.get("repos")
    if repos is None and "repos" in body and cursor is None:
        repos = []  # what relays written in Go answer behind the end
    if not isinstance(repos, list):
        return Failure(Trouble.MALFORMED, "no list of repos in the answer")
    entries = [entry for entry in (_entry(row, now_micros) for row in repos) if entry is not None]
    return Page(entries, len(repos) - len(entries), cursor)


def page_cursor(body: dict[str, Any]) -> str | Failure | None:
    """The cursor of the next page; None at the end. It is kept, sent back and indexed, so it has a limit."""
    cursor = body.get("cursor")
    if cursor is None or cursor == "":
        return None
    if type(cursor) is int:
        cursor = str(cursor)
    if not isinstance(cursor, str) or not is_printable(cursor):
        return Failure(Trouble.MALFORMED, "the cursor is no text")
    if len(cursor.encode()) > MAX_CURSOR_BYTES:
        return Failure(Trouble.MALFORMED, f"a cursor of more than {MAX_CURSOR_BYTES} bytes")
    return cursor


def _entry(row: object, now_micros: int) -> Entry | None:
    if type(row) is not dict:
        return None
    did, rev, active, status = row.get("did"), row.get("rev"), row.get("active"), row.get("status")
    if type(did) is not str or not is_did(did):
        return None
    if type(rev) is not str or not is_tid(rev) or tid_micros(rev) > now_micros + FUTURE_MICROS:
        rev = ""
    status = printable(status, 100) if type(status) is str and status else None
    if type(active) is not bool:
        active = status is None
    return Entry(did, rev, is_served(active, status), status)


def failure_of(status: int, error: str | None, retry_after: float | None) -> Failure:
    """What an HTTP status other than 200 says about the page."""
    detail = f"HTTP {status}" + (f" {error}" if error else "")
    if status == 429:
        return Failure(Trouble.THROTTLED, detail, retry_after)
    if status in (502, 503, 504) or 520 <= status <= 530:
        return Failure(Trouble.UNREACHABLE, detail, retry_after)
    return Failure(Trouble.BAD_ANSWER, detail, retry_after)
