"""Keys of the tables: whether an entry of their index holds them, told before the database is asked.

An entry of a PostgreSQL index holds 2,704 bytes. What is larger is refused, once for every message: found by its size here, it
costs no transaction.
"""

from typing import Any

from protocol.labels import MAX_KEY_BYTES


class KeyTooLarge(Exception):
    """A message whose row has a key that no index holds."""


def check_size(topic: str, event: Any) -> None:
    """Raise KeyTooLarge for a label, a record or an event with operations that has such a key."""
    if topic == "label_live":
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
    if 4 * characters > MAX_KEY_BYTES:  # nearly no key has so many
        size = sum(len(part.encode(errors="replace")) for part in parts)
        if size > MAX_KEY_BYTES:
            raise KeyTooLarge(f"a key of {size} bytes fits no index row: it holds {MAX_KEY_BYTES}")
