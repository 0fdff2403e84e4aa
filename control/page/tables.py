"""Tables and buttons of the page, built so that a keyboard and a screen reader get along with them."""

from collections.abc import Sequence

from control.page.markup import Markup, Part, tag

RIGHT = "number"


def table(name: str, heads: Sequence[str], rows: Sequence[Sequence[Part]], *, empty: str) -> Markup:
    """A table with a caption and scoped headers; heads that end in `#` are columns of numbers. Without rows: a sentence."""
    if not rows:
        return tag("p", empty, class_="empty")
    right = [head.endswith("#") for head in heads]
    titles = [
        tag("th", head.rstrip("#"), scope="col", class_=RIGHT if numeric else None)
        for head, numeric in zip(heads, right, strict=True)
    ]
    body = []
    for row in rows:
        first, *others = row
        cells = [tag("th", first, scope="row")]
        cells += [
            tag("td", cell, class_=RIGHT if numeric else None) for cell, numeric in zip(others, right[1:], strict=True)
        ]
        body.append(tag("tr", cells))
    # the frame scrolls sideways on a narrow screen, so a keyboard has to reach it
    grid = tag("table", tag("caption", name, class_="hidden"), tag("thead", tag("tr", titles)), tag("tbody", body))
    return tag("div", grid, class_="frame", tabindex="0", role="region", aria_label=name)


def button(verb: str, what: str, path: str, *, sure: bool = False, body: str | None = None) -> Markup:
    """A button that posts to the API; the label says what it is about. `sure`: asks before. Shown with JavaScript only."""
    return tag(
        "button",
        verb,
        type="button",
        data_post=path,
        data_body=body,
        data_sure=f"{verb} {what}?" if sure else None,
        aria_label=f"{verb} {what}",
        id=f"{verb}-{path}".replace("/", "-").replace(" ", "-"),
    )


def meter(name: str, part: float, whole: float) -> Markup:
    """A bar of progress."""
    return tag("progress", f"{part:.0f} of {whole:.0f}", value=f"{part:.0f}", max=f"{whole or 1:.0f}", aria_label=name)


def section(name: str, title: str, *parts: Part, note: Part = None) -> Markup:
    """A part of the page that is replaced as a whole when it changes."""
    head = tag("h2", title, id=f"{name}-title")
    return tag(
        "section",
        head,
        tag("p", note, class_="note") if note else None,
        parts,
        id=name,
        aria_labelledby=f"{name}-title",
    )
