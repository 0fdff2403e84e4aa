"""`createdAt` of records → the AppView's form `YYYY-MM-DDTHH:MM:SS.mmmZ`, truncated to milliseconds. Never raises on wire input.

The conversion follows `new Date(text).toISOString()`: 30 February is 1 or 2 March, 24:00:00 is midnight of the next day, second 60
is invalid, a time without a zone is UTC, and years range from 0 to 9999. An invalid time becomes EPOCH.

`is_datetime` accepts what either of the two published validators accepts, the old lenient or the new strict one. The exception:
separators other than `-`, `T`, `:` and `.`, which only the old one accepts and current software does not write.
"""

import re
from datetime import datetime, timedelta

EPOCH = "1970-01-01T00:00:00.000Z"
MAX_DATETIME = 64
_LENIENT_DIGITS = 9  # of a fraction at most, if only the lenient validator accepts the rest

# days that every month has, so that a match needs no check of the calendar
_common = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{3})?Z", re.ASCII
).fullmatch
_general = re.compile(
    r"(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-4]):([0-5]\d):([0-5]\d|60)(?:\.(\d+))?"
    r"(?:Z|([+-])([01]\d|2[0-3])(:?)([0-5]\d))?",
    re.ASCII,
).fullmatch
_CYCLE = 400  # years after which the calendar repeats
_MAX_YEAR = 9999
_FORM_CHARACTERS = 24  # of the AppView's form


def is_datetime(text: str) -> bool:
    """Whether a record with this createdAt is valid."""
    return _common(text) is not None or _is_other_datetime(text)


def created_at(text: str) -> str:
    """The AppView's form of a createdAt, or EPOCH."""
    if _common(text) is not None:
        return text if len(text) == _FORM_CHARACTERS else f"{text[:-1]}.000Z"
    return _instant(text) or EPOCH


def _is_other_datetime(text: str) -> bool:
    match = _general(text)
    if match is None:
        return False
    year, month, day, hour, minute, second, fraction, sign, hours, colon, minutes = match.groups()
    if sign == "-" and hours == minutes == "00":
        return False
    zoned = text[-1] == "Z" or bool(colon)
    if zoned and len(text) <= MAX_DATETIME and hour != "24" and second != "60" and _instant(text) is not None:
        return True
    known = sign is None or minutes in {"00", "30", "45"}
    midnight = hour != "24" or minute == "00"
    return known and midnight and len(fraction or "") <= _LENIENT_DIGITS and _is_day(int(year), int(month), int(day))


def _is_day(year: int, month: int, day: int) -> bool:
    try:
        datetime(_CYCLE + year % _CYCLE, month, day)
    except ValueError:
        return False
    return True


def _instant(text: str) -> str | None:
    """An ISO 8601 time as JavaScript parses it, in the AppView's form; None if invalid."""
    match = _general(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, hours, _, minutes = match.groups()
    milliseconds = f"{fraction or '':0<3}"[:3]
    if second == "60" or (hour == "24" and (minute, second, milliseconds) != ("00", "00", "000")):
        return None
    # shifted into years that Python supports, and back: year 0000 exists, and an offset may leave 9999
    moved = _CYCLE + int(year) % _CYCLE
    moment = datetime(moved, int(month), 1) + timedelta(
        days=int(day) - 1, hours=int(hour), minutes=int(minute), seconds=int(second)
    )
    if sign is not None:
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        moment = moment - offset if sign == "+" else moment + offset
    real = moment.year + int(year) - moved
    return f"{real:04d}{moment:-%m-%dT%H:%M:%S}.{milliseconds}Z" if 0 <= real <= _MAX_YEAR else None
