"""Numbers as the page shows them: counts, ages, shares."""

MINUTE, HOUR, DAY = 60, 3600, 86_400


def count(number: float | None) -> str:
    """A whole number with thousands separators; `–` if it is unknown."""
    return "–" if number is None else f"{number:,.0f}"


def short(value: float) -> str:
    """A few characters: 950, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.1f}"


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


def share(part: float, whole: float) -> str:
    """A percentage: 100 only for all, 0 only for none."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{min(max(percent, 0.1), 99.9):.1f} %" if 0 < part < whole else f"{percent:.0f} %"


def took(seconds: float) -> str:
    """The length of a short span: `0.35 s`, `12.4 s`, then as `age`."""
    return age(seconds) if seconds >= MINUTE else f"{seconds:.3g} s"
