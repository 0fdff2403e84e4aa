"""Positions of a CAR's blocks in its file: CID → (offset, size), in about 25 bytes of memory per block. A dict would take 160.

Two bytes of the digest select one of 65,536 buckets. An entry is the codec, twelve more bytes of the digest, and the position. An
attacker needs 2^56 hashes to find two blocks with the same prefix, and would only damage their own repo.
"""

from typing import Final

from protocol.cid import CID_SIZE

_SIZE_BITS = 28  # a position is one integer: offset << 28 | size
_SIZE_MASK: Final = (1 << _SIZE_BITS) - 1
_POSITION_BYTES: Final = 8
_KEY_BYTES: Final = 13
_ENTRY_BYTES: Final = _KEY_BYTES + _POSITION_BYTES
_BUCKETS: Final = 1 << 16
_SHA_256: Final = b"\x12\x20"


class BlockOffsets:
    """The index of one CAR. Its length counts repeated blocks each time."""

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * _BUCKETS
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, cid: bytes, offset: int, size: int) -> None:
        """Add a block. `cid`: 36 bytes of one of the network's two kinds."""
        at = cid[4] << 8 | cid[5]
        entry = cid[1:2] + cid[6:18] + (offset << _SIZE_BITS | size).to_bytes(_POSITION_BYTES)
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
                position = int.from_bytes(bucket[at + _KEY_BYTES : at + _ENTRY_BYTES])
                return position >> _SIZE_BITS, position & _SIZE_MASK
        return None
