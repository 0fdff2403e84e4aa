"""The page as HTML: `render_page`, `render_sections`. Templates are in `templates/`; jinja2 escapes every value.

A section is rendered by the macro NAME_section of `sections.html`.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from control.attention import attention
from control.page import figures
from control.page.page_snapshot import ROWS, PageSnapshot
from control.status import PHASES, buffered_count

SECTIONS = ("attention", "coverage", "rates", "jobs", "paused", "hosts", "failed", "dead_letters", "skipped", "cursors")
"""In the order of the page."""
CHART = {"width": 240, "height": 48}
MARGIN = 3

Points = Sequence[tuple[float, float]]


def polyline(points: Points) -> str:
    """(seconds, value) in order of time, at least two → `X,Y X,Y …` in a chart's coordinates."""
    first, last = points[0][0], points[-1][0]
    across = CHART["width"] / ((last - first) or 1.0)
    up = (CHART["height"] - 2 * MARGIN) / (max(value for _, value in points) or 1.0)
    return " ".join(f"{(at - first) * across:.1f},{CHART['height'] - MARGIN - value * up:.1f}" for at, value in points)


def _printable(value: Any) -> Any:
    """A value as the templates print it: "" for None; NUL and lone surrogates, which HTML does not take, are replaced."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return "" if value is None else value


TEMPLATES = Environment(
    loader=PackageLoader("control.page"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_printable,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals |= {"CHART": CHART, "PHASES": PHASES, "ROWS": ROWS, "UTC": UTC}
TEMPLATES.filters |= {
    "age": figures.age,
    "count": figures.count,
    "buffered_count": buffered_count,
    "polyline": polyline,
    "segment": lambda text: quote(text, safe=":"),
    "share": figures.share,
    "short": figures.short,
}


def render_sections(snapshot: PageSnapshot, history: Mapping[str, Points]) -> dict[str, str]:
    """Section → HTML, in the order of the page."""
    troubles = [f"{one.what}; {one.remedy}" for one in attention(snapshot.status, now=time.time())]
    context = {"snapshot": snapshot, "status": snapshot.status, "history": history, "attention": troubles}
    module = TEMPLATES.get_template("sections.html").make_module(context)
    return {name: str(getattr(module, f"{name}_section")()) for name in SECTIONS}


def render_page(sections: Mapping[str, str], error: str, *, locked: bool) -> str:
    """The whole page. `locked`: it has a form for a token instead of sections."""
    values = {"sections": list(map(Markup, sections.values())), "error": error, "locked": locked}
    return TEMPLATES.get_template("page.html").render(values)
