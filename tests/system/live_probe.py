"""Live events while a mirror works: how long each took to reach its table, and what was settled meanwhile."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import psycopg

from tests.support.simulation import Simulation


class Stillness:
    """When the machine stood still: a thread that sleeps for a moment, and woke a second late or more."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(60)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(0.05):
            now = time.monotonic()
            if now - last > 1.0:
                self._spans.append((last, now))
            last = now

    def left(self, begin: float, end: float) -> float:
        """Seconds of this time in which the machine did not stand still."""
        return end - begin - sum(max(0.0, min(end, until) - max(begin, since)) for since, until in self._spans)


class Prober:
    """Writes records to repos in sync, of `among` if given.

    `spans`: when each was sent, and when it was in its table; `passed`: how many messages of the backfill were settled
    in between.
    """

    def __init__(self, simulation: Simulation, database: str, seed: int, among: list[str] | None = None) -> None:
        self.spans: list[tuple[float, float]] = []
        self.passed: list[int] = []
        self.error: BaseException | None = None
        self._simulation = simulation
        self._database = database
        self._rng = random.Random(seed)
        self._among = among
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.ended.set()
        self._thread.join(90)
        assert self.error is None, self.error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._database, autocommit=True) as db:
                while not self.ended.is_set():
                    self._probe(db)
        except BaseException as err:
            self.error = err

    def _probe(self, db: psycopg.Connection[Any]) -> None:
        among = "phase = 'sync' and (%(among)s::text[] is null or did = any(%(among)s))"
        found = db.execute(f"select did from sluice.repo where {among}", {"among": self._among}).fetchall()
        if not found:
            time.sleep(0.1)
            return
        sent, before = time.monotonic(), settled_of_backfill(db)
        written = self._simulation.op("create", did=self._rng.choice(found)[0])
        path = written["did"], *written["path"].split("/")
        row = "select 1 from sluice.record where did = %s and collection = %s and rkey = %s"
        while not db.execute(row, path).fetchone():
            assert time.monotonic() < sent + 120, f"{path} is not in the tables after two minutes"
            time.sleep(0.05)
        self.spans.append((sent, time.monotonic()))
        self.passed.append(settled_of_backfill(db) - before)


def settled_of_backfill(db: psycopg.Connection[Any]) -> int:
    """Messages with fetched records that the index has settled."""
    row = db.execute("select coalesce(sum(next), 0) from sluice.stream_offset where topic like '%firehose_backfill'")
    return int(row.fetchone()[0])  # type: ignore[index]
