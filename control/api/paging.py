"""Cursors of paged answers: the key of a page's last row as opaque text, and back. `read_cursor` raises Invalid."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from control.api.errors import Invalid

Key = list[Any]


def write_cursor(key: Key) -> str:
    return urlsafe_b64encode(json.dumps(key, default=str).encode()).decode().rstrip("=")


def read_cursor(cursor: str, *kinds: type) -> Key | None:
    """Cursor → key of these types; None for the first page. Raises Invalid for a cursor of another list."""
    if not cursor:
        return None
    try:
        key = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError) as err:
        raise Invalid("cursor: not from this list") from err
    if not isinstance(key, list) or [type(part) for part in key] != list(kinds):
        raise Invalid("cursor: not from this list")
    if any(isinstance(part, int) and abs(part) > 2**62 for part in key):
        raise Invalid("cursor: not from this list")
    return key


def cut(rows: list[dict[str, Any]], limit: int, *keys: str) -> tuple[list[dict[str, Any]], str | None]:
    """Up to `limit + 1` rows → the rows of the page, and the cursor of the next page or None."""
    if len(rows) <= limit:
        return rows, None
    return rows[:limit], write_cursor([rows[limit - 1][key] for key in keys])
