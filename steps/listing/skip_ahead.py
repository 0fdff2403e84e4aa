"""Stepping over a listing cursor that keeps failing: cursor → a cursor behind it, or None where none can be made.

A relay's cursors are numbers of its accounts, so a step of `step` numbers passes the poisoned page. A PDS's cursors are its
own business; the one form that is common, `<millis>::<did>`, can be moved in time, a second at first and twice as far each
time it did not help. Anything else cannot be stepped over, only waited for.
"""

import re

_TIMED = re.compile(r"(\d{1,15})::(.*)", re.DOTALL | re.ASCII).fullmatch
_FIRST_MILLIS = 1000
_MAX_DOUBLINGS = 40
_MAX_DIGITS = 18


def is_number(cursor: str) -> bool:
    """A plain decimal number."""
    return cursor.isascii() and cursor.isdigit() and len(cursor) <= _MAX_DIGITS


def beyond(cursor: str, *, skips: int, step: int, relay: bool) -> str | None:
    """A cursor behind the page that starts at `cursor` ('': the first page), the `skips`-th time in a row."""
    doubled = 1 << min(skips, _MAX_DOUBLINGS)
    if relay and (not cursor or is_number(cursor)):
        return str(int(cursor or "0") + step)
    if is_number(cursor):
        return str(int(cursor) + doubled)  # what it counts is not known: as little as possible
    timed = _TIMED(cursor)
    if timed is not None:
        return f"{int(timed[1]) + _FIRST_MILLIS * doubled}::{timed[2]}"
    return None


def reached(cursor: str, to: str) -> bool:
    """Whether a listing at `cursor` has passed the end of a skipped range; False where the two cannot be compared."""
    if is_number(to) and (not cursor or is_number(cursor)):
        return int(cursor or "0") >= int(to)
    here, there = _TIMED(cursor), _TIMED(to)
    if here is not None and there is not None:
        return (int(here[1]), here[2]) >= (int(there[1]), there[2])
    return False


def order(cursor: str) -> tuple[int, str]:
    """A key that sorts cursors of one form; '' is before all."""
    if is_number(cursor):
        return int(cursor), ""
    timed = _TIMED(cursor)
    return (int(timed[1]), timed[2]) if timed is not None else (0, cursor)


def middle(cursor: str, to: str) -> str | None:
    """A cursor halfway between two of the same form; None where there is none, or where they cannot be compared."""
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
