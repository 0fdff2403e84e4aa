"""`SharedOffsets`: the log's clients of all steps that read lag, so that control does not hold three for each step."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from connectors.kafka.offsets import Offsets, PartitionLag
from connectors.runtime import watchdog
from schemas.settings import Settings

FRESH_SECONDS = 8.0
"""Lag this old is not read again: less than the interval of the step that exports it."""
WAIT_STEP_SECONDS = 1.0


class SharedOffsets:
    """For any thread. Every request has a deadline, so the wait for another thread's requests ends."""

    def __init__(self, settings: Settings) -> None:
        self._offsets = Offsets(settings)
        self._lock = threading.Lock()
        self._lags: list[PartitionLag] = []
        self._read_at = float("-inf")

    def lags(self, db: psycopg.Connection[Any]) -> list[PartitionLag]:
        """As `Offsets.lags`, at most FRESH_SECONDS old. Raises psycopg.Error and LogUnavailable."""
        with self.use() as offsets:
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                self._lags = offsets.lags(db)
                self._read_at = time.monotonic()
            return self._lags

    @contextmanager
    def use(self) -> Iterator[Offsets]:
        """The clients, for one thread at a time."""
        while not self._lock.acquire(timeout=WAIT_STEP_SECONDS):
            watchdog.mark()
        try:
            yield self._offsets
        finally:
            self._lock.release()
