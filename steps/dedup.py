"""Duplicates of several relays, by exact identity of the event, in bounded memory.

Keys are whole identities (kind, DID, rev and commit; or kind, DID, time and payload), hashed with Python's keyed hash, so that
nobody outside can make two of them collide. A forged commit under another one's rev therefore masks nothing. What is no longer
remembered comes through again, and the index drops it by its rev or its ratchet: forgetting is safe, remembering saves work.
"""

from collections.abc import Hashable


class Remembered:
    """A set of at most `limit` keys that forgets the older half when it is full. About 65 bytes a key."""

    __slots__ = ("_half", "_new", "_old")

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._new: set[int] = set()
        self._old: set[int] = set()

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def __contains__(self, key: Hashable) -> bool:
        mark = hash(key)
        return mark in self._new or mark in self._old

    def add(self, key: Hashable) -> bool:
        """Remember a key; whether it is new."""
        mark = hash(key)
        if mark in self._new:
            return False
        known = mark in self._old
        self._new.add(mark)
        if len(self._new) >= self._half:
            self._old, self._new = self._new, set()
        return not known

    def discard(self, key: Hashable) -> None:
        """Forget a key: the event was not written, and another copy of it is to be judged anew."""
        mark = hash(key)
        self._new.discard(mark)
        self._old.discard(mark)
