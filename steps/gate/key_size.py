"""Limits of table keys, checked before a row is written.

An entry of a PostgreSQL index has at most 2,704 bytes. A larger one makes the whole transaction fail.
"""

from typing import Any

from protocol.labels import MAX_KEY_BYTES
from schemas.topics import LABEL_LIVE


class KeyTooLarge(Exception):
    """A message whose row has a key too large for an index."""


def check_size(topic: str, event: Any) -> None:
    """Raises KeyTooLarge if a row of this label, record or event would have such a key."""
    if topic == LABEL_LIVE:
        _check((event.src, event.uri, event.val, event.cid or ""))
    elif (kind := type(event).__name__) == "CreateEvent":
        _check((event.did, event.collection, event.rkey))
    elif kind == "CommitEvent":
        for op in event.ops:
            _check((event.did, op.collection, op.rkey))
    else:
        _check((event.did,))


def _check(parts: tuple[str, ...]) -> None:
    characters = sum(map(len, parts))
    if 4 * characters > MAX_KEY_BYTES:  # UTF-8 has at most four bytes a character: almost every key stops here
        size = sum(len(part.encode(errors="replace")) for part in parts)
        if size > MAX_KEY_BYTES:
            raise KeyTooLarge(f"a key of {size} bytes is too large for an index: at most {MAX_KEY_BYTES}")
