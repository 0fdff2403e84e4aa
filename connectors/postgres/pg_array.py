"""Columns → array literals of PostgreSQL, for statements that unnest thousands of rows.

psycopg's dumper inspects every element, which took a third of the index's time for live events (bench/). Here a column of
plain texts is a single join. The literal is text; the statement casts it (`%(dids)s::text[]`).
"""

from collections.abc import Sequence

Element = str | int | float | bool | bytes | None


def array(values: Sequence[Element]) -> str:
    """The literal of a one-dimensional array. Elements have one type, or are None (NULL)."""
    if not values:
        return "{}"
    if type(values[0]) is str:
        try:
            joined = '","'.join(values)  # type: ignore[arg-type]  # TypeError if one is not a str
        except TypeError:
            return "{" + ",".join(map(_element, values)) + "}"
        if "\\" not in joined and joined.count('"') == 2 * (len(values) - 1):
            return '{"' + joined + '"}'
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: Element) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bytes):
        return '"\\\\x' + value.hex() + '"'
    return str(value)  # true, 1, 0.5, inf, nan: PostgreSQL reads them as Python writes them
