"""The spool: CARs of initial repositories in one temporary file, so that they take disk space and not memory.

The file has no name; the operating system deletes it when the process ends.
"""

import os
import tempfile
import threading
from collections.abc import Iterator

from simulator.repo.car import Block, car_head, car_header

_PIECE = 1 << 20


class Car:
    """The bytes of a CAR, in memory or in the spool file. `size` is in bytes."""

    __slots__ = ("_bytes", "_file", "_offset", "size")

    def __init__(self, content: bytes | None, file: int = -1, offset: int = 0, size: int = 0) -> None:
        self._bytes = content
        self._file = file
        self._offset = offset
        self.size = len(content) if content is not None else size

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self, size: int = _PIECE) -> Iterator[bytes]:
        """The bytes in chunks of `size`; one chunk if they are in memory."""
        if self._bytes is not None:
            yield self._bytes
            return
        for start in range(0, self.size, size):
            yield os.pread(self._file, min(size, self.size - start), self._offset + start)


class CarSpool:
    """An append-only file of CARs. Thread-safe."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="sluice-simulator-")  # noqa: SIM115  lives as long as the network
        self._end = 0
        self._lock = threading.Lock()

    def write(self, root: bytes, blocks: Iterator[Block]) -> Car:
        """Append a CAR, at most about 1 MiB per write."""
        with self._lock:
            start = at = self._end
            parts = [car_header(root)]
            pending = 0
            for cid, block in blocks:
                parts += (car_head(block, cid), cid, block)
                pending += 40 + len(block)
                if pending > _PIECE:
                    at += os.pwrite(self._file.fileno(), b"".join(parts), at)
                    parts, pending = [], 0
            at += os.pwrite(self._file.fileno(), b"".join(parts), at)
            self._end = at
        return Car(None, self._file.fileno(), start, at - start)
