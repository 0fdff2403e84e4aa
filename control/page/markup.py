"""HTML from values: `tag("td", handle)` → `Markup`. Text and attributes are escaped here and nowhere else.

Only a `Markup` passes unescaped, and only `tag`, `join` and `document` make one: a hostile handle or error cannot become HTML.
"""

from collections.abc import Iterable
from html import escape

VOID = frozenset({"meta", "link", "input"})


class Markup(str):
    """HTML that was made here."""

    __slots__ = ()


Part = str | int | float | None | Iterable["Part"]


def text(part: Part) -> Markup:
    """A part as HTML: markup as it is, other text escaped, nothing for None, lists one after the other."""
    if isinstance(part, Markup):
        return part
    if part is None:
        return Markup("")
    if isinstance(part, str | int | float):
        # NUL and lone surrogates are legal in Python, not in a page
        plain = str(part).replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        return Markup(escape(plain, quote=True))
    return Markup("".join(text(one) for one in part))


def tag(name: str, *parts: Part, **attributes: str | int | float | bool | None) -> Markup:
    """An element. Attribute names lose a trailing underscore, other underscores are dashes; True is an attribute without value."""
    opened = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")  # noqa: PLW2901 - as it is written in HTML
        opened.append(key if value is True else f'{key}="{text(value)}"')
    head = f"<{' '.join(opened)}>"
    return Markup(head if name in VOID else f"{head}{text(parts)}</{name}>")


def document(*parts: Part) -> Markup:
    """A whole page."""
    return Markup("<!doctype html>\n" + text(parts))
