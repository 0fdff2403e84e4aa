"""A count of the items and levels of DAG-CBOR, without building an object. Raises ScanError, and nothing else, on wire input.

A decoder builds 60 bytes and more for one byte of input, and takes seconds for megabytes of empty lists. The scan skips
strings by their length and ends at the first item beyond its limit, so its time is bounded by that limit: some 0.3 µs an item.
It checks only what it needs; what it lets through may still be no DAG-CBOR.
"""

from typing import NamedTuple

MAX_DEPTH = 128
"""Levels of nesting that anything from outside may have."""


class ScanError(Exception):
    """Why the input must not be decoded. `too_large`, `too_deep`: beyond a limit, where it may be well-formed."""

    def __init__(self, detail: str, *, too_large: bool, too_deep: bool = False) -> None:
        super().__init__(detail)
        self.too_large = too_large
        self.too_deep = too_deep


class Scanned(NamedTuple):
    """Where an object ends, how many items it has, itself included, and how deep it is."""

    end: int
    items: int
    depth: int


def scan(data: bytes, at: int, items: int, depth: int = MAX_DEPTH) -> Scanned:  # noqa: PLR0912 (calls would double its time)
    """The object that begins at `at`, up to these limits."""
    end, left, deepest = len(data), items, 0
    pending: list[int] = []  # items that each open container still needs
    while at < end:
        head = data[at]  # as `_head` does, without the call
        kind, value = head >> 5, head & 31
        at += 1
        if value > 23:
            if value > 27:
                raise ScanError("a length without an end", too_large=False)
            start, at = at, at + (1 << value - 24)
            value = int.from_bytes(data[start:at])
        left -= 1
        if left < 0:
            raise ScanError(f"more than {items} items", too_large=True)
        if kind in (2, 3):
            at += value
        elif 4 <= kind <= 6:
            count = value if kind == 4 else 2 * value if kind == 5 else 1
            if count > left:
                raise ScanError(f"more than {items} items", too_large=True)
            if count:
                pending.append(count)
                if len(pending) > deepest:
                    deepest = len(pending)
                    if deepest > depth:
                        raise ScanError(f"nested more than {depth} deep", too_large=False, too_deep=True)
                continue
        while pending:
            pending[-1] -= 1
            if pending[-1]:
                break
            pending.pop()
        else:
            if at > end:
                break
            return Scanned(at, items - left, deepest)
    raise ScanError("cut short", too_large=False)


def scan_all(data: bytes, items: int, objects: int, depth: int = MAX_DEPTH) -> int:
    """The number of items of all objects in a row, within these limits."""
    at, left = 0, items
    while at < len(data):
        if not objects:
            raise ScanError("more objects than there may be", too_large=False)
        objects -= 1
        at, used, _ = scan(data, at, left, depth)
        left -= used
    return items - left


def integer_field(data: bytes, at: int, name: bytes, items: int) -> int | None:
    """The integer of a field of the map at `at`; None where there is none, or it stands behind more than `items` items."""
    wanted = bytes((0x60 | len(name),)) + name
    try:
        kind, count, at = _head(data, at)
        if kind != 5:
            return None
        for _ in range(count):
            found = data.startswith(wanted, at)
            at, used, _ = scan(data, at, items)
            items -= used
            if found:
                kind, value, _ = _head(data, at)
                return value if kind == 0 else None
            at, used, _ = scan(data, at, items)
            items -= used
    except ScanError:
        return None
    return None


def nested_deeper(objects: list[object], depth: int = MAX_DEPTH) -> bool:
    """Whether maps and lists that were decoded are nested deeper; `objects` are the first level. Without recursion."""
    level = objects
    for _ in range(depth + 1):
        inner: list[object] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                inner += item.values()  # type: ignore[attr-defined]  # a dict
            elif kind is list:
                inner += item  # type: ignore[arg-type]  # a list
        if not inner:
            return False
        level = inner
    return True


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """(major type, value, position behind the head)."""
    if at >= len(data):
        raise ScanError("cut short", too_large=False)
    head = data[at]
    value = head & 31
    if value < 24:
        return head >> 5, value, at + 1
    if value > 27:
        raise ScanError("a length without an end", too_large=False)
    width = 1 << (value - 24)
    end = at + 1 + width
    if end > len(data):
        raise ScanError("cut short", too_large=False)
    return head >> 5, int.from_bytes(data[at + 1 : end]), end
