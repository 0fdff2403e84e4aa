"""Columns → array literals of PostgreSQL, for statements that unnest thousands of rows.

psycopg's own dumper looks at every element by itself, which was a third of the index's time for live events (bench/).
Here a column of plain texts is one join. The literal is text: the statement casts it (`%(dids)s::text[]`).
"""

from collections.abc import Sequence

Element = str | int | float | bool | bytes | None


def array(values: Sequence[Element]) -> str:
    """The literal of a one-dimensional array, NULLs included. Elements of one type, as the column has one."""
    if not values:
        return "{}"
    if type(values[0]) is str:
        try:
            joined = '","'.join(values)  # type: ignore[arg-type]  # TypeError where there is something else
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
