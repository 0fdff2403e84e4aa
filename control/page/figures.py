"""How values read on the page: counts, ages, times, shares."""

from datetime import UTC, datetime

from control.page.markup import Markup, tag

MINUTE, HOUR, DAY = 60, 3600, 86_400


def count(number: float) -> str:
    """Whole, with separators."""
    return f"{number:,.0f}"


def age(seconds: float | None) -> str:
    """Two units at most: `5 s`, `3 min`, `2 h 10 min`, `4 d 3 h`."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    for large, name, small, part in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name}" + (f" {rest} {part}" if rest else "")
    return f"{whole // MINUTE} min" if whole >= MINUTE else f"{whole} s"


def moment(time: datetime | None) -> Markup:
    """A time, as text and for programs."""
    if time is None:
        return tag("span", "–")
    utc = time.astimezone(UTC)
    return tag("time", utc.strftime("%Y-%m-%d %H:%M:%S UTC"), datetime=utc.isoformat(timespec="seconds"))


def share(part: float, whole: float) -> str:
    """A percentage that says 100 only of everything and 0 only of nothing."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{min(max(percent, 0.1), 99.9):.1f} %" if 0 < part < whole else f"{percent:.0f} %"
