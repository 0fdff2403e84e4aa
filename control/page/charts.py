"""Small charts: points of the last minutes → an inline SVG that a screen reader reads as one sentence."""

from collections.abc import Sequence

from control.page.markup import Markup, tag

WIDTH = 240
HEIGHT = 48
TOP = 3


def short(value: float) -> str:
    """A figure in a few characters: 950, 12.3k, 4.56M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.1f}"


def chart(name: str, unit: str, points: Sequence[tuple[float, float]]) -> Markup:
    """A figure with its newest value and its course. `points`: (seconds, value) in order of time; may be empty."""
    newest = short(points[-1][1]) if points else "–"
    highest = max((value for _, value in points), default=0.0)
    said = f"{name}: {newest} {unit}, at most {short(highest)} in the last minutes"
    return tag(
        "figure",
        tag("figcaption", tag("span", name, class_="name"), tag("b", newest), " ", tag("span", unit, class_="unit")),
        tag(
            "svg",
            tag("title", said),
            _line(points, highest) if len(points) > 1 else None,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=said,
            preserveAspectRatio="none",
        ),
        class_="chart",
    )


def _line(points: Sequence[tuple[float, float]], highest: float) -> Markup:
    first, last = points[0][0], points[-1][0]
    across = WIDTH / ((last - first) or 1.0)
    up = (HEIGHT - 2 * TOP) / (highest or 1.0)
    places = [f"{(at - first) * across:.1f},{HEIGHT - TOP - value * up:.1f}" for at, value in points]
    return Markup(
        tag("path", d=f"M0,{HEIGHT} L{' L'.join(places)} L{WIDTH},{HEIGHT} Z", class_="area")
        + tag("polyline", points=" ".join(places), class_="line")
    )
