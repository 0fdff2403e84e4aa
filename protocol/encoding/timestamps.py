"""Times of the network → `YYYY-MM-DDTHH:MM:SS.mmmZ` (UTC, milliseconds cut, never rounded), or None. Never raises.

What this spelling has and others lack: text order is time order.
"""

import re
from datetime import UTC, datetime

_UTC = re.compile(
    r"(\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.(\d{1,20}))?(?:Z|[+-]00:00)",
    re.ASCII,
).fullmatch
_FRACTION = re.compile(r"\.(\d{3})\d*", re.ASCII)
_MAX_TEXT = 64
_LAST_SAFE_DAY = "28"  # every month has it


def canonical(text: object) -> str | None:
    """The same moment, spelt as above; None for what is no moment (no zone, no such day, no string)."""
    if type(text) is not str or len(text) > _MAX_TEXT:
        return None
    match = _UTC(text)
    if match is not None:
        whole, fraction = match.groups("")
        if whole[8:10] <= _LAST_SAFE_DAY or _is_day(whole):
            return f"{whole}.{fraction[:3]:0<3}Z" if whole > "0001" else None
        return None
    return _other_zone(text)


def _is_day(whole: str) -> bool:
    try:
        datetime.fromisoformat(whole)
    except ValueError:
        return False
    return True


def _other_zone(text: str) -> str | None:
    """An offset from UTC. Rare, so the general parser may do it."""
    if not text.isascii() or "T" not in text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return None
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z".rjust(24, "0")


def to_unix(text: str) -> float:
    """What `canonical` wrote → seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def from_unix(seconds: float) -> str:
    """Seconds since 1970 → the spelling above."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
