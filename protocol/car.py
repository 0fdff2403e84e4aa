"""CARv1 reading: bytes → an index of verified blocks. Raises CarError, and nothing else, on wire input.

`feed` takes chunks of any size and checks varints, header, sizes, and the SHA-256 of each block against its CID. Blocks may come
in any order and more than once. `finish` detects a CAR that ends within a block. One that ends between two blocks is well-formed;
only the walk of the tree can detect it.

A block above `CarLimits.block` is hashed in passing and not kept: `oversized` has its size, `get` returns None. So a record that
is too large loses only its own body. A block of another codec or hash function is skipped.

    CarIndex()             keeps the blocks in memory
    CarIndex(read_at)      keeps the position of each block, about 25 bytes; `read_at(offset, size)` reads it from the file
                           into which the caller writes the same chunks
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Final

from protocol.car_format import (
    LONGEST_CID,
    MAX_HEADER,
    OUR_PREFIXES,
    CarError,
    CarReason,
    check_foreign_cid,
    may_be_car,
    parse_header,
    varint,
)
from protocol.cid import CID_SIZE
from protocol.encoding.block_offsets import BlockOffsets

MAX_BLOCK_BYTES: Final = 2 << 20
"""A larger block is hashed and not kept."""


@dataclass(frozen=True, slots=True)
class CarLimits:
    """`block`: bytes of a block that is kept. `blocks`: their number; 4,000,000 take about 100 MB of index. `total`: bytes of the CAR."""

    block: int = MAX_BLOCK_BYTES
    blocks: int = 4_000_000
    total: int = 2 << 30


class CarIndex:
    """See the module. `root`: the first root of the header, None before it was read. `oversized`: CID → size of the blocks that
    are too large to keep. `skipped`: number of blocks with another codec or hash function.
    """

    __slots__ = (
        "_have",
        "_large",
        "_limits",
        "_need",
        "_offset",
        "_offsets",
        "_pending",
        "_read_at",
        "blocks",
        "oversized",
        "root",
        "skipped",
    )

    def __init__(self, read_at: Callable[[int, int], bytes] | None = None, *, limits: CarLimits | None = None) -> None:
        self.root: bytes | None = None
        self.skipped = 0
        self.blocks: dict[bytes, bytes] = {}
        self.oversized: dict[bytes, int] = {}
        self._large: _Large | None = None
        self._offsets = BlockOffsets() if read_at is not None else None
        self._read_at = read_at
        self._limits = limits or CarLimits()
        self._offset = 0  # of the first pending byte
        self._pending: list[bytes] = []
        self._have = 0
        self._need = 1  # pending bytes that parsing needs to continue

    def __len__(self) -> int:
        """Number of blocks that are kept."""
        return len(self.blocks) if self._offsets is None else len(self._offsets)

    def __contains__(self, cid: bytes) -> bool:
        """Whether the CAR has this block, kept or oversized."""
        return self.size_of(cid) is not None or cid in self.oversized

    @property
    def size(self) -> int:
        """Bytes fed so far."""
        return self._offset + self._have

    def get(self, cid: bytes) -> bytes | None:
        """The verified block of a CID; None if it is missing or not kept."""
        if self._offsets is None or self._read_at is None:
            return self.blocks.get(cid)
        found = self._offsets.find(cid)
        return None if found is None else self._read_at(*found)

    def size_of(self, cid: bytes) -> int | None:
        """Size of a block that is kept, without reading it; else None."""
        if self._offsets is None:
            block = self.blocks.get(cid)
            return None if block is None else len(block)
        found = self._offsets.find(cid)
        return None if found is None else found[1]

    def feed(self, chunk: bytes) -> None:
        """Index the next bytes of the CAR. After a CarError the index must not be used."""
        if self.size + len(chunk) > self._limits.total:
            raise CarError(CarReason.TOO_LARGE, f"more than {self._limits.total} bytes")
        if self._large is not None:
            chunk = self._pass(self._large, chunk)
        while chunk:
            chunk = self._take(chunk)

    def _take(self, chunk: bytes) -> bytes:
        """Parse the pending bytes and a chunk; returns the bytes after an oversized block."""
        self._pending.append(chunk)
        self._have += len(chunk)
        if self._have < self._need:  # joining at every chunk of a large block would be quadratic
            return b""
        buffer = b"".join(self._pending) if len(self._pending) > 1 else chunk
        at = 0 if self.root is not None else self._header(buffer)
        at = self._sections(buffer, at) if self.root is not None else at
        if len(self) + len(self.oversized) + self.skipped > self._limits.blocks:
            raise CarError(CarReason.TOO_MANY_BLOCKS, f"more than {self._limits.blocks}")
        rest = buffer[at:]
        self._offset += at
        if self._large is not None:
            self._have, self._pending = 0, []
            return self._pass(self._large, rest)
        self._have = len(rest)
        self._pending = [rest] if rest else []
        return b""

    def _pass(self, large: "_Large", chunk: bytes) -> bytes:
        """Hash the next bytes of an oversized block; returns the bytes after it."""
        part = chunk[: large.left]
        large.left -= len(part)
        self._offset += len(part)
        if large.hash is not None:
            large.hash.update(part)
        if large.left:
            return b""
        self._large = None
        if large.hash is None:
            self.skipped += 1
        elif large.hash.digest() != large.cid[4:]:
            raise CarError(CarReason.HASH_MISMATCH, f"block of {large.size} bytes before {self._offset}")
        else:
            self.oversized[large.cid] = large.size
        return chunk[len(part) :]

    def finish(self) -> None:
        """Check that the CAR does not end within a block. Raises CarError."""
        if self.root is None or self._have or self._large is not None:
            raise CarError(CarReason.TRUNCATED, f"ends within a block, after {self.size} bytes")

    def _header(self, buffer: bytes) -> int:
        """Read the header if it is complete; returns the number of bytes consumed."""
        if not may_be_car(buffer):
            raise CarError(CarReason.NOT_A_CAR, f"begins with {buffer[:24]!r}")
        size, at = varint(buffer, 0, len(buffer))
        if at == 0:
            self._need = self._have + 1
            return 0
        if not 0 < size <= MAX_HEADER:
            raise CarError(CarReason.BAD_HEADER, f"{size} bytes long")
        if len(buffer) < at + size:
            self._need = at + size
            return 0
        self.root = parse_header(buffer[at : at + size])
        return at + size

    def _sections(self, buffer: bytes, at: int) -> int:
        """Index the complete blocks in the buffer from `at`; returns the offset of the first incomplete one."""
        end_of_buffer = len(buffer)
        limit = self._limits.block + LONGEST_CID  # the CID is part of a section
        blocks, offsets, base = self.blocks, self._offsets, self._offset
        while at < end_of_buffer:
            size = buffer[at]
            start = at + 1
            if size >= 0x80 and start < end_of_buffer and 0 < buffer[start] < 0x80:  # two bytes: most blocks
                size, start = size & 0x7F | buffer[start] << 7, start + 1
            elif size >= 0x80:
                size, start = varint(buffer, at, end_of_buffer)
                if start == at:
                    self._need = end_of_buffer - at + 1
                    return at
            if size > limit:
                if end_of_buffer - start < LONGEST_CID:
                    self._need = start - at + LONGEST_CID
                    return at
                at = self._begin_large(buffer, start, size)
                break
            end = start + size
            if end > end_of_buffer:
                self._need = end - at
                return at
            prefix = buffer[start : start + 4]
            if size >= CID_SIZE and prefix in OUR_PREFIXES:
                body = start + CID_SIZE
                cid = buffer[start:body]
                block = buffer[body:end]
                if sha256(block).digest() != cid[4:]:
                    raise CarError(CarReason.HASH_MISMATCH, f"block at {base + at}")
                if offsets is None:
                    blocks[cid] = block
                else:
                    offsets.add(cid, base + body, end - body)
            else:
                check_foreign_cid(buffer, start, end)
                self.skipped += 1
            at = end
        self._need = 1
        return at

    def _begin_large(self, buffer: bytes, start: int, size: int) -> int:
        """Start hashing an oversized block that is not kept; returns the offset of its body."""
        if buffer[start : start + 4] in OUR_PREFIXES:
            body = start + CID_SIZE
            self._large = _Large(buffer[start:body], size - CID_SIZE, size - CID_SIZE, sha256())
            return body
        check_foreign_cid(buffer, start, start + size)
        self._large = _Large(b"", size, size, None)
        return start


@dataclass(slots=True)
class _Large:
    """An oversized block that is being hashed. `left`: bytes still to come. `hash`: None for another codec or hash function."""

    cid: bytes
    size: int
    left: int
    hash: Any


def index_bytes(car: bytes, *, limits: CarLimits | None = None) -> CarIndex:
    """Index a complete CAR. Raises CarError."""
    index = CarIndex(limits=limits)
    index.feed(car)
    index.finish()
    return index


def salvaged(car: bytes, limits: CarLimits) -> tuple[bytes | None, dict[bytes, bytes]]:
    """Root and valid blocks of a damaged CAR, as far as its sections can be separated."""
    blocks: dict[bytes, bytes] = {}
    root = None
    at, end = 0, len(car)
    try:
        size, start = varint(car, 0, end)
        at = start + size
        if start == 0 or at > end:
            return None, blocks
        root = parse_header(car[start:at])
    except CarError:
        pass  # the sections may still be valid
    try:
        for _ in range(limits.blocks):
            size, start = varint(car, at, end)
            if start == at or start + size > end or size > limits.block + 128:
                break
            at = start + size
            cid, block = car[start : start + CID_SIZE], car[start + CID_SIZE : at]
            if cid[:4] in OUR_PREFIXES and sha256(block).digest() == cid[4:]:
                blocks[cid] = block
    except CarError:
        pass
    return root, blocks


def file_reader(fd: int) -> Callable[[int, int], bytes]:
    """`read_at` for a spool file, which must stay open while the index is used. Does not use the file's position.

    Not mapped into memory: mapped pages count as the process's memory, and a truncated file would kill the process (SIGBUS).
    """
    return partial(_read_at, fd)


def _read_at(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise CarError(CarReason.TRUNCATED, f"the spool file lost bytes at {offset}")
    return data
