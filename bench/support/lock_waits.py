"""Sessions that wait for a lock of another, sampled from pg_locks."""

import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self

import psycopg

SAMPLE_SECONDS = 0.01
WAITING = "select locktype, coalesce(relation::regclass::text, '') from pg_locks where not granted"


class LockWaits:
    """Counts, while in its `with` statement, the samples in which a session waits: type and table of the lock → samples."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lock waits")
        self._samples = 0
        self._waits = Counter[str]()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def figures(self) -> dict[str, Any]:
        """`samples`, and the waits among them."""
        return {"samples": self._samples, "waits": dict(self._waits)}

    def _run(self) -> None:
        with psycopg.connect(self._database, autocommit=True) as db:
            while not self._ended.wait(SAMPLE_SECONDS):
                self._samples += 1
                self._waits.update({f"{kind} {table}".strip() for kind, table in db.execute(WAITING).fetchall()})
