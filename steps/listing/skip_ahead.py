"""Skipping a listing cursor that keeps failing: cursor → a later cursor, or None if none can be computed.

A relay's cursors number its accounts, so a step of `step` passes the failing page. A PDS's cursors are opaque; one common
form, `<millis>::<did>`, can be moved in time: by a second at first, and twice as far after each attempt that failed. Other
cursors cannot be skipped; their listing waits.
"""

import re

_TIMED = re.compile(r"(\d{1,15})::(.*)", re.DOTALL | re.ASCII).fullmatch
_FIRST_MILLIS = 1000
_MAX_DOUBLINGS = 40
_MAX_DIGITS = 18


def is_number(cursor: str) -> bool:
    """Whether the cursor is a plain decimal number."""
    return cursor.isascii() and cursor.isdigit() and len(cursor) <= _MAX_DIGITS


def beyond(cursor: str, *, skips: int, step: int, relay: bool) -> str | None:
    """A cursor after the page at `cursor` ('': the first page). `skips`: skips in a row so far."""
    doubled = 1 << min(skips, _MAX_DOUBLINGS)
    if relay and (not cursor or is_number(cursor)):
        return str(int(cursor or "0") + step)
    if is_number(cursor):
        return str(int(cursor) + doubled)  # its unit is unknown: move as little as possible
    timed = _TIMED(cursor)
    if timed is not None:
        return f"{int(timed[1]) + _FIRST_MILLIS * doubled}::{timed[2]}"
    return None


def reached(cursor: str, to: str) -> bool:
    """Whether `cursor` is at or after `to`, the end of a range; False if the two cannot be compared."""
    if is_number(to) and (not cursor or is_number(cursor)):
        return int(cursor or "0") >= int(to)
    here, there = _TIMED(cursor), _TIMED(to)
    if here is not None and there is not None:
        return (int(here[1]), here[2]) >= (int(there[1]), there[2])
    return False


def order(cursor: str) -> tuple[int, str]:
    """A key that sorts cursors of one form; '' comes first."""
    if is_number(cursor):
        return int(cursor), ""
    timed = _TIMED(cursor)
    return (int(timed[1]), timed[2]) if timed is not None else (0, cursor)


def middle(cursor: str, to: str) -> str | None:
    """A cursor halfway between two of the same form; None if there is none, or if they cannot be compared."""
    low, high = order(cursor)[0], order(to)[0]
    half = (low + high) // 2
    if half <= low or half >= high:
        return None
    if is_number(to) and (not cursor or is_number(cursor)):
        return str(half)
    timed = _TIMED(to)
    if timed is not None and _TIMED(cursor) is not None:
        return f"{half}::{timed[2]}"
    return None
