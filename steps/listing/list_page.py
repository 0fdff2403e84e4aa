"""Answers of listRepos and listReposByCollection → RepoPage | PageFailure. Never raises on wire input."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from protocol.account_status import is_served
from protocol.encoding.safe_text import is_printable, printable
from protocol.syntax import FUTURE_MICROS, is_did, is_tid, tid_micros

MAX_CURSOR_BYTES = 1000  # two of them and a URL fit into one row of an index


class ListEntry(msgspec.Struct, frozen=True, gc=False):
    """One repo of a page. `rev`: '' if missing or invalid; `active`: its PDS serves it."""

    did: str
    rev: str
    active: bool
    status: str | None


class RepoPage(msgspec.Struct, frozen=True):
    """A page: its repos, how many entries were invalid, and the cursor of the next page."""

    entries: list[ListEntry]
    rejected: int
    cursor: str | None


class PageTrouble(StrEnum):
    """What went wrong with a request."""

    BAD_ANSWER = "bad_answer"  # an error status for this page
    MALFORMED = "malformed"  # 200 without a valid page
    THROTTLED = "throttled"
    UNREACHABLE = "unreachable"  # no answer, or a gateway's


@dataclass(frozen=True, slots=True)
class PageFailure:
    """A request that returned no page. `retry_after`: seconds, if the server sent it."""

    trouble: PageTrouble
    detail: str
    retry_after: float | None = None


def read_page(body: Any, now_micros: int) -> RepoPage | PageFailure:
    """Read the JSON of a listRepos answer. A bad entry is dropped, not the page; a rev from the future is ignored."""
    if not isinstance(body, dict):
        return PageFailure(PageTrouble.MALFORMED, "the answer is not an object")
    cursor = page_cursor(body)
    if isinstance(cursor, PageFailure):
        return cursor
    repos = body.get("repos")
    if repos is None and "repos" in body and cursor is None:
        repos = []  # relays written in Go answer null after the end
    if not isinstance(repos, list):
        return PageFailure(PageTrouble.MALFORMED, "no list of repos in the answer")
    entries = [entry for entry in (_entry(row, now_micros) for row in repos) if entry is not None]
    return RepoPage(entries, len(repos) - len(entries), cursor)


def page_cursor(body: dict[str, Any]) -> str | PageFailure | None:
    """The cursor of the next page; None at the end. It is stored, sent back and indexed, so its length is limited."""
    cursor = body.get("cursor")
    if cursor is None or cursor == "":
        return None
    if type(cursor) is int:
        cursor = str(cursor)
    if not isinstance(cursor, str) or not is_printable(cursor):
        return PageFailure(PageTrouble.MALFORMED, "the cursor is not text")
    if len(cursor.encode()) > MAX_CURSOR_BYTES:
        return PageFailure(PageTrouble.MALFORMED, f"a cursor of more than {MAX_CURSOR_BYTES} bytes")
    return cursor


def _entry(row: object, now_micros: int) -> ListEntry | None:
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
    return ListEntry(did, rev, is_served(active, status), status)


def failure_of(status: int, error: str | None, retry_after: float | None) -> PageFailure:
    """The failure for an HTTP status other than 200."""
    detail = f"HTTP {status}" + (f" {error}" if error else "")
    if status == 429:
        return PageFailure(PageTrouble.THROTTLED, detail, retry_after)
    if status in (502, 503, 504) or 520 <= status <= 530:
        return PageFailure(PageTrouble.UNREACHABLE, detail, retry_after)
    return PageFailure(PageTrouble.BAD_ANSWER, detail, retry_after)
