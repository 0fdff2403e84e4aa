"""The pages as HTML: `render_page`, `render_sections`. Templates are in `templates/`; jinja2 escapes every value.

A section of the overview is rendered by the macro NAME_section of `sections.html`.
"""

import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from control.attention import attention
from control.page import figures
from control.page.page_snapshot import ROWS, PageSnapshot
from control.status import PHASES, buffered_count

SECTIONS = (
    *(
        "nav",
        "attention",
        "glance",
        "coverage",
        "lag",
        "jobs",
        "processes",
        "serving",
        "hosts",
        "failed",
        "dead_letters",
        "skipped",
    ),
    "cursors",
)
"""In the order of the page."""

CELL = re.compile(r"<td\b")
LINK = re.compile(r"(at://[\w.:%~/-]+|did:[a-z]+:[\w.:%-]+)", re.ASCII)
CODE = re.compile(r"`([^`]+)`")


def labelled(row: str, heads: Sequence[str]) -> Markup:
    """The cells of a row, each with the name of its column, which a narrow screen shows. Text has no `<td`: it is escaped."""
    names = iter(heads[1:])
    return Markup(CELL.sub(lambda _: f'<td role="cell" data-label="{escape(next(names).rstrip("#"))}"', row))  # noqa: S704


def linked(text: str) -> Markup:
    """Escaped text whose DIDs and AT-URIs are links to their pages."""
    parts = LINK.split(str(_printable(text)))
    return Markup().join(
        Markup('<a href="/search?q={}">{}</a>').format(quote(part, safe=""), part) if at % 2 else escape(part)
        for at, part in enumerate(parts)
    )


def code(text: str) -> Markup:
    """Escaped text with `…` as code."""
    parts = CODE.split(text)
    return Markup().join(
        Markup("<code>{}</code>").format(part) if at % 2 else escape(part) for at, part in enumerate(parts)
    )


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
TEMPLATES.globals |= {"PHASES": PHASES, "ROWS": ROWS, "UTC": UTC}
TEMPLATES.filters |= {
    "age": figures.age,
    "buffered_count": buffered_count,
    "code": code,
    "count": figures.count,
    "labelled": labelled,
    "linked": linked,
    "segment": lambda text: quote(text, safe=":"),
    "share": figures.share,
    "short": figures.short,
    "took": figures.took,
}


def render_sections(snapshot: PageSnapshot) -> dict[str, str]:
    """Section of the overview → HTML, in the order of the page."""
    problems = attention(snapshot.status, now=time.time())
    context = {"snapshot": snapshot, "status": snapshot.status, "problems": problems}
    module = TEMPLATES.get_template("sections.html").make_module(context)
    return {name: str(getattr(module, f"{name}_section")()) for name in SECTIONS}


def render_page(kind: str, values: Mapping[str, Any] | None = None, *, error: str = "", locked: bool = False) -> str:
    """The page of the template `kind`. `locked`: it has a form for a token instead of content."""
    base = {"kind": kind, "title": "", "query": "", "error": error, "locked": locked}
    return TEMPLATES.get_template(f"{kind}.html").render(base | dict(values or {}))
