"""Counts the items and levels of DAG-CBOR without building objects. Raises ScanError, and nothing else, on wire input.

A decoder builds 60 bytes or more per byte of input, and takes seconds for megabytes of empty lists. The scan skips strings and
stops at the first item beyond its limit, so the limit bounds its time: about 0.3 µs per item. It does not check that the input
is valid DAG-CBOR.
"""

from typing import Final, NamedTuple

MAX_DEPTH: Final = 128
"""Levels of nesting at most, of frames and records."""


class ScanError(Exception):
    """The input must not be decoded. `too_large`, `too_deep`: it exceeds a limit, and may be well-formed."""

    def __init__(self, detail: str, *, too_large: bool, too_deep: bool = False) -> None:
        super().__init__(detail)
        self.too_large = too_large
        self.too_deep = too_deep


class Scanned(NamedTuple):
    """The end of an object, its number of items including itself, and its depth."""

    end: int
    items: int
    depth: int


def scan(data: bytes, at: int, items: int, depth: int = MAX_DEPTH) -> Scanned:  # noqa: PLR0912 (calls would double its time)
    """Scan the object at offset `at`. Raises ScanError, also above `items` or `depth`."""
    end, left, deepest = len(data), items, 0
    pending: list[int] = []  # items that each open container still needs
    while at < end:
        head = data[at]  # `_head`, inlined
        kind, value = head >> 5, head & 31
        at += 1
        if value > 23:
            if value > 27:
                raise ScanError("an indefinite length", too_large=False)
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
    """Scan consecutive objects to the end of the data; returns their items. Raises ScanError, also above the limits."""
    at, left = 0, items
    while at < len(data):
        if not objects:
            raise ScanError("too many objects", too_large=False)
        objects -= 1
        at, used, _ = scan(data, at, left, depth)
        left -= used
    return items - left


def integer_field(data: bytes, at: int, name: bytes, items: int) -> int | None:
    """The unsigned integer of a field in the map at `at`; None if it is missing, or not within the first `items` items."""
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
    """Whether decoded maps and lists are nested deeper than `depth`; `objects` are the first level. Iterative."""
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
    """(major type, value, offset behind the head)."""
    if at >= len(data):
        raise ScanError("cut short", too_large=False)
    head = data[at]
    value = head & 31
    if value < 24:
        return head >> 5, value, at + 1
    if value > 27:
        raise ScanError("an indefinite length", too_large=False)
    width = 1 << (value - 24)
    end = at + 1 + width
    if end > len(data):
        raise ScanError("cut short", too_large=False)
    return head >> 5, int.from_bytes(data[at + 1 : end]), end
