"""The environment of every benchmark: an embedded log and database in a temporary folder, and our own processes.

Figures are ratios measured in one run on one machine: every benchmark prints its rate and its floor.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from confluent_kafka import Consumer, TopicPartition

from bench.support.usage import Usage
from connectors.kafka import topics
from connectors.postgres.migrate import migrate
from local.embedded.embedded_database import EmbeddedDatabase
from local.embedded.embedded_log import EmbeddedLog
from schemas.settings import Settings, load, variables

STOP_SECONDS = 60.0
REMEMBER_COMMITS = {"track_commit_timestamp": "on"}


@dataclass(frozen=True, slots=True)
class Stack:
    """A running log and database, and the settings that name them."""

    settings: Settings
    environment: dict[str, str]
    servers: dict[str, int]  # kind → pid
    folder: Path  # of the files of log and database

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a statement (none for a command)."""
        with psycopg.connect(self.settings.database, autocommit=True) as db:
            cursor = db.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def process(self, *arguments: str, **environment: str) -> Iterator[psutil.Process]:
        """One of our processes, as `sluice run ARGUMENTS`; stopped with SIGTERM at the end."""
        command = [sys.executable, "-m", "cli", "run", *arguments, "--parent", str(os.getpid())]
        values = {"SLUICE_LOG_FORMAT": "json", **self.environment, **environment}
        with subprocess.Popen(command, env=values, stderr=sys.stderr) as child:
            try:
                yield psutil.Process(child.pid)
            finally:
                child.terminate()
                try:
                    child.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()

    def usage(self, **processes: int) -> Usage:
        """CPU and memory of these processes and of the servers, from now on."""
        return Usage({**processes, **self.servers, "bench": os.getpid()})


@contextmanager
def stack(
    partitions: int = 8, folder: Path | None = None, server: Mapping[str, str] = REMEMBER_COMMITS, **overrides: Any
) -> Iterator[Stack]:
    """Start log and database, migrate, apply the topics. `folder` is kept; `server`: settings of PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") if folder is None else nullcontext(folder) as chosen:
        root = Path(chosen)
        root.mkdir(exist_ok=True)
        root.chmod(0o755)  # PostgreSQL runs as a user of its own
        with (
            EmbeddedLog(root / "log") as log,
            EmbeddedDatabase(root / "database", settings=server) as database,
        ):
            settings = load(
                kafka_bootstrap=log.bootstrap,
                database=database.url,
                kafka_partitions=partitions,
                kafka_replication=1,
                allow_private_hosts=True,
                identity_requests_per_second=100_000,  # otherwise the rate limit of identity requests would dominate
                **overrides,
            )
            migrate(settings.database)
            topics.apply(settings)
            servers = {"kafka": log.pid or 0, "postgres": database.pid or 0}
            yield Stack(settings, {**os.environ, **variables(settings)}, servers, root)


def until(condition: Callable[[], bool], seconds: float = 600.0, every: float = 0.05) -> float:
    """Wait for a condition; returns the seconds. Raises TimeoutError."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            raise TimeoutError(f"not reached within {seconds:.0f} s")
        time.sleep(every)
    return time.monotonic() - begin


@dataclass(frozen=True, slots=True)
class Stretch:
    """A measured period of a pipeline: the count at its begin, the seconds for the rest, and the cost of the rest."""

    first: int
    seconds: float
    figures: dict[str, Any]

    def per_million(self, records: int) -> dict[str, float]:
        """CPU seconds of each process for a million records, of which `records` were done in this stretch."""
        return {kind: round(cpu / max(1, records) * 1e6, 1) for kind, cpu in self.figures["cpu_seconds"].items()}


def watch(running: Stack, done: Callable[[], int], wanted: int, **processes: int) -> Stretch:
    """Measure from the first result, without start-up, until `done()` reaches `wanted`."""
    until(lambda: done() > 0, every=0.01)
    first, begin = done(), time.monotonic()
    usage = running.usage(**processes)
    until(lambda: done() >= wanted)
    return Stretch(first, time.monotonic() - begin, usage.stop())


class Ends:
    """The number of messages ever written to a topic, for frequent polling."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap, "group.id": "bench", "log_level": 0})
        self._parts = [TopicPartition(settings.topic(topic), part) for part in range(settings.kafka_partitions)]

    def messages(self) -> int:
        """The sum over all partitions."""
        return sum(self._consumer.get_watermark_offsets(part, timeout=10)[1] for part in self._parts)


@dataclass(slots=True)
class Floor:
    """The cost of the same work in a plain loop, without the pipeline: wall-clock seconds and CPU seconds."""

    count: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def figures(self, rate: float) -> dict[str, Any]:
        """For the report of a pipeline that reached `rate`. On a shared machine CPU time varies less."""
        own = self.count / self.seconds
        micros = round(self.cpu_seconds / self.count * 1e6, 1)
        return {"floor_per_second": round(own), "ratio": round(rate / own, 3), "floor_cpu_micros": micros}


@contextmanager
def floor(count: int = 0) -> Iterator[Floor]:
    """Measure the block."""
    measured = Floor(count)
    begin, cpu = time.monotonic(), time.process_time()
    yield measured
    measured.seconds, measured.cpu_seconds = time.monotonic() - begin, time.process_time() - cpu


def report(name: str, **figures: Any) -> None:
    """One JSON line of results."""
    print(json.dumps({"bench": name, **figures}), flush=True)
