"""Times of the network → `YYYY-MM-DDTHH:MM:SS.mmmZ` in UTC, truncated to milliseconds, or None. Never raises on wire input.

In this form, text order is time order.
"""

import re
from datetime import UTC, datetime

_UTC = re.compile(
    r"(\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.(\d{1,20}))?(?:Z|[+-]00:00)",
    re.ASCII,
).fullmatch
_MAX_TEXT = 64
_LAST_SAFE_DAY = "28"  # exists in every month


def canonical(text: object) -> str | None:
    """The same time in the canonical form; None for other types, invalid dates, and times without a zone."""
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
    """A time with an offset from UTC. Rare, so the slower general parser is used."""
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
    """The canonical form → seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def from_unix(seconds: float) -> str:
    """Seconds since 1970 → the canonical form."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
