"""Where the blocks of a CAR stand in its file: CID → (offset, size), in some 25 bytes of memory a block.

A dict would take 160. Blocks are spread over 65,536 buckets by two bytes of their digest; an entry is the codec, twelve more
bytes of the digest, and the place. Two blocks of one such prefix would take 2^56 hashes to find, and harm their own repo only.
"""

from protocol.cid import CID_SIZE

_SIZE_BITS = 28  # a place is one integer: offset << 28 | size
_SIZE_MASK = (1 << _SIZE_BITS) - 1
_PLACE_BYTES = 8
_KEY_BYTES = 13
_ENTRY_BYTES = _KEY_BYTES + _PLACE_BYTES
_BUCKETS = 1 << 16
_SHA_256 = b"\x12\x20"


class CarPlaces:
    """Entries are added and found; the length counts a block as often as the CAR has it."""

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * _BUCKETS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, cid: bytes, offset: int, size: int) -> None:
        """`cid`: 36 bytes."""
        at = cid[4] << 8 | cid[5]
        entry = cid[1:2] + cid[6:18] + (offset << _SIZE_BITS | size).to_bytes(_PLACE_BYTES)
        bucket = self._buckets[at]
        if bucket is None:
            self._buckets[at] = bytearray(entry)
        else:
            bucket += entry
        self._count += 1

    def find(self, cid: bytes) -> tuple[int, int] | None:
        """(offset, size) of a block, or None."""
        if len(cid) != CID_SIZE or cid[2:4] != _SHA_256:
            return None
        bucket = self._buckets[cid[4] << 8 | cid[5]]
        if bucket is None:
            return None
        key, at = cid[1:2] + cid[6:18], -1
        while (at := bucket.find(key, at + 1)) >= 0:
            if at % _ENTRY_BYTES == 0:
                place = int.from_bytes(bucket[at + _KEY_BYTES : at + _ENTRY_BYTES])
                return place >> _SIZE_BITS, place & _SIZE_MASK
        return None
