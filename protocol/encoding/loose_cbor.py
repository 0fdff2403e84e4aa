"""CBOR that is not canonical DAG-CBOR, decoded as the official AppView decodes it.

Accepted beyond DAG-CBOR: map keys in any order, half and single floats, `undefined` (as null), and with `any_text` invalid UTF-8
(as U+FFFD). Refused with ValueError: integers and lengths in a longer form than needed, indefinite lengths, duplicate keys, keys
that are not text, NaN and infinity, tags other than 42, bytes after the end. Invalid UTF-8 without `any_text` raises
UnicodeDecodeError, a ValueError; nesting above `depth` raises RecursionError. No other exception occurs.

Source: the decode options of `@atproto/lex-cbor` (cborg with `strict`). This decoder is slow; MAX_ITEMS bounds it.
"""

import math
import struct
from typing import Any

import cbrrr

from protocol.cid import is_any_cid

MAX_ITEMS = 100_000
"""Values of one block at most, about 0.1 s of decoding. A larger block is kept as bytes only."""

_SIMPLE: dict[int, bool | None] = {20: False, 21: True, 22: None, 23: None}
_FLOATS = {25: ("!e", 2), 26: ("!f", 4), 27: ("!d", 8)}
_CID_TAG = 42
_BYTES, _TEXT = 2, 3


def decode(block: bytes, depth: int, *, any_text: bool = False) -> Any:
    """Decode a block to the types of `cbrrr`. `depth`: levels of maps and lists at most."""
    reader = _Reader(block, "replace" if any_text else "strict")
    value = reader.value(depth)
    if reader.at != len(block):
        raise ValueError("bytes behind the end")
    return value


class _Reader:
    __slots__ = ("at", "block", "errors", "items")

    def __init__(self, block: bytes, errors: str) -> None:
        self.block = block
        self.errors = errors
        self.at = 0
        self.items = 0

    def value(self, depth: int) -> Any:
        self.items += 1
        if self.items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} values")
        major, info = divmod(self._take(1)[0], 32)
        if major == 7:
            return self._simple(info)
        number = self._number(info)
        if major == 0:
            return number
        if major == 1:
            return -1 - number
        if major == 2:
            return self._take(number)
        if major == 3:
            return str(self._take(number), "utf-8", self.errors)
        if major == 6:
            return self._link(number)
        if depth == 0:
            raise RecursionError
        if number > len(self.block) - self.at:  # every item takes a byte
            raise ValueError("ends too early")
        return [self.value(depth - 1) for _ in range(number)] if major == 4 else self._map(number, depth - 1)

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth) if self._next(_TEXT) else None
            if type(key) is not str or key in found:
                raise ValueError("a key is not text, or occurs twice")
            found[key] = self.value(depth)
        return found

    def _link(self, tag: int) -> Any:
        body = self.value(0) if tag == _CID_TAG and self._next(_BYTES) else None
        if type(body) is not bytes or body[:1] != b"\0" or not is_any_cid(body[1:]):
            raise ValueError("a tag that is not a link")
        return cbrrr.CID(body[1:])

    def _simple(self, info: int) -> Any:
        if info in _SIMPLE:
            return _SIMPLE[info]
        if info not in _FLOATS:
            raise ValueError(f"simple value {info}")
        form, size = _FLOATS[info]
        number: float = struct.unpack(form, self._take(size))[0]
        if not math.isfinite(number):
            raise ValueError("NaN or infinity")
        return number

    def _number(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise ValueError("an indefinite length")
        size: int = 1 << info - 24
        number = int.from_bytes(self._take(size))
        if number < (24 if size == 1 else 1 << 4 * size):
            raise ValueError("a number in a longer form than needed")
        return number

    def _next(self, major: int) -> bool:
        return self.block[self.at : self.at + 1] != b"" and self.block[self.at] >> 5 == major

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.block):
            raise ValueError("ends too early")
        part = self.block[self.at : end]
        self.at = end
        return part
