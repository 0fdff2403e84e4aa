"""Bytes of downloads: in memory if small, in an unlinked file if large; bounded over all downloads of a process.

A Spool is written in the loop's thread and read in the flow's. If the memory budget is used up, a download continues on disk
instead of waiting: partial downloads that wait for each other's memory would deadlock. If the disk budget is used up too,
`write` raises SpoolFull, and the repo is deferred.
"""

import os
import tempfile
import threading
from collections.abc import Iterator

from protocol.car import CarIndex, CarLimits, file_reader

READ_BYTES = 4 * 1024 * 1024


class SpoolFull(Exception):
    """The memory and disk budgets of downloads are used up, or the file system is full."""


class SpoolBudget:
    """Bytes of all downloads of a process. Thread-safe."""

    def __init__(self, memory_bytes: int, disk_bytes: int) -> None:
        self._limits = {"memory": memory_bytes, "disk": disk_bytes}
        self._held = {"memory": 0, "disk": 0}
        self._lock = threading.Lock()

    def take(self, kind: str, size: int) -> bool:
        """Reserve bytes; False if they do not fit."""
        with self._lock:
            if self._held[kind] + size > self._limits[kind]:
                return False
            self._held[kind] += size
            return True

    def release(self, kind: str, size: int) -> None:
        with self._lock:
            self._held[kind] -= size

    def held(self, kind: str) -> int:
        return self._held[kind]


class Spool:
    """The bytes of one download. `limit`: maximum bytes in memory. `car`: limits of the index."""

    def __init__(self, budget: SpoolBudget, limit: int, car: CarLimits) -> None:
        self._budget = budget
        self._limit = limit
        self._car = car
        self._data = bytearray()  # a list of 1-byte chunks would take 40 bytes per chunk
        self._fd: int | None = None
        self._reserved = {"memory": 0, "disk": 0}
        self.size = 0

    @property
    def on_disk(self) -> bool:
        """Whether the bytes are in a file."""
        return self._fd is not None

    @property
    def memory(self) -> int:
        return self._reserved["memory"]

    def write(self, chunk: bytes) -> None:
        """Append. Raises SpoolFull, also if the file system is full."""
        if self._fd is None and self.size + len(chunk) <= self._limit and self._take("memory", len(chunk)):
            self._data += chunk
        else:
            try:
                self._to_disk(chunk)
            except OSError as err:
                raise SpoolFull(str(err)) from err
        self.size += len(chunk)

    def spill(self) -> None:
        """Move the bytes from memory to disk. If it raises SpoolFull, they stay in memory."""
        if self._fd is None:
            try:
                self._move()
            except OSError as err:
                raise SpoolFull(str(err)) from err

    def index(self) -> Iterator[CarIndex | None]:
        """Index the CAR, some megabytes per step: yields None until it is complete, then the index. Raises CarError.

        The index of a CAR on disk reads blocks from the file: close the spool only after its last use.
        """
        if self._fd is None:
            index = CarIndex(limits=self._car)
            index.feed(bytes(self._data))
        else:
            index = CarIndex(file_reader(self._fd), limits=self._car)
            while chunk := os.pread(self._fd, READ_BYTES, index.size):
                index.feed(chunk)
                yield None
        index.finish()
        yield index

    def close(self) -> None:
        """Free the bytes. May be called more than once."""
        if self._fd is not None:
            os.close(self._fd)
        for kind, size in self._reserved.items():
            self._budget.release(kind, size)
        self._fd, self._data, self._reserved = None, bytearray(), {"memory": 0, "disk": 0}

    def _to_disk(self, chunk: bytes) -> None:
        if self._fd is None:
            self._move()
        if not self._take("disk", len(chunk)):
            raise SpoolFull(f"{self._budget.held('disk')} bytes of downloads are on disk")
        assert self._fd is not None  # noqa: S101  # just moved
        _write_all(self._fd, chunk)

    def _move(self) -> None:
        """Move the bytes into an unlinked file, which the system deletes when the process ends."""
        if not self._take("disk", self.size):
            raise SpoolFull(f"{self._budget.held('disk')} bytes of downloads are on disk")
        self._fd, path = tempfile.mkstemp(prefix="sluice-car-")
        os.unlink(path)
        _write_all(self._fd, self._data)
        self._data = bytearray()
        self._budget.release("memory", self._reserved["memory"])
        self._reserved["memory"] = 0

    def _take(self, kind: str, size: int) -> bool:
        if not self._budget.take(kind, size):
            return False
        self._reserved[kind] += size
        return True


def _write_all(fd: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
