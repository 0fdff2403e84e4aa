"""Fixture `live_bed`: the firehose and labels flows in this process, with the database but without a broker.

The real source, steps and order of the dataflow run in a thread of their own, as the engine runs them: poll, steps, output,
end of the epoch. The output is a `MemoryLog`; `start("index")` writes it through the index's real writer. What only a
process shows (kill -9, exit codes, a broker that is away) is tested with `flow_bed`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from bytewax.dataflow import Dataflow
from confluent_kafka import TIMESTAMP_CREATE_TIME
from prometheus_client import REGISTRY

from connectors.identity.key_ring import KeyRing
from connectors.kafka.producer import Out
from connectors.runtime import work
from connectors.runtime.health import Health
from connectors.runtime.stop import STOP
from flows.firehose import flow as firehose
from flows.index.apply import rules_of
from flows.index.decode import TOPICS, Batch, decode
from flows.index.sink import IndexWriter
from flows.index.store import IndexStore
from flows.labels import flow as labels
from schemas.settings import Settings
from tests.support.flow_process import WAIT_SECONDS

IDLE_SECONDS = 0.01
FLOWS: dict[str, Callable[[Settings, Health], Dataflow]] = {"firehose": firehose.flow, "labels": labels.flow}


@dataclass(frozen=True, slots=True)
class Logged:
    """One message of the log, in partition 0, with the methods of `confluent_kafka.Message` that the index calls."""

    out: Out
    at: int
    written: float

    def topic(self) -> str:
        return self.out.topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes:
        return self.out.value

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_CREATE_TIME, self.out.time or int(self.written * 1000)


class MemoryLog:
    """Topics of one partition, in memory. It is also the sink of a flow and the producer of the index."""

    def __init__(self) -> None:
        self._topics: dict[str, list[Logged]] = {}

    def send(self, messages: Sequence[Out]) -> None:
        for message in messages:
            topic = self._topics.setdefault(message.topic, [])
            topic.append(Logged(message, len(topic), time.time()))

    def read(self, topic: str, start: int = 0) -> list[Logged]:
        return self._topics.get(topic, [])[start:]


class _NoPressure:
    """In place of `HighWater`: the index of a test keeps up."""

    paused = None

    def __init__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class _Running:
    """A thread that takes turns until it is stopped or fails."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._killed = self._ended = False
        self._error = ""
        self._thread = threading.Thread(target=self._run, name=f"live {name}", daemon=True)

    def turn(self) -> bool:
        """Whether anything was done. Raises StopIteration at the end."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while not self._killed:
                if not self.turn():
                    time.sleep(IDLE_SECONDS)
        except StopIteration:
            pass
        except Exception:
            self._error = traceback.format_exc()
        finally:
            self.leave()

    def leave(self) -> None:
        """The last call in the thread."""

    def _join(self, seconds: float = WAIT_SECONDS) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{self.name} does not end within {seconds} s"

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        """Stop between two turns: what was written last is not covered by a position."""
        self._killed = True
        self._join()
        self._end()

    def _end(self) -> None:
        """Close what it has opened, once."""
        if not self._ended:
            self._ended = True
            self.close()

    def close(self) -> None:
        raise NotImplementedError


class LiveFlow(_Running):
    """A flow whose turns are those of the engine with an epoch for each batch."""

    def __init__(self, name: str, settings: Settings, log: MemoryLog, rings: list[KeyRing[Any]]) -> None:
        super().__init__(name)
        self._before = _samples()
        self._health = Health(name, exported=False)
        self._lines = _Lines()
        logging.getLogger().addHandler(self._lines)
        known = len(rings)
        source, self._steps = _chain(FLOWS[name](settings, self._health))
        self._rings = rings[known:]
        self._log = log
        try:
            self._source = source.build_part("", "0", None)
        except Exception:
            logging.getLogger().removeHandler(self._lines)
            raise
        self._thread.start()

    def turn(self) -> bool:
        items = self._source.next_batch()
        for step in self._steps:
            items = step(items)
        self._log.send(items)
        self._source.snapshot()
        return bool(items)

    def terminate(self, seconds: float = WAIT_SECONDS) -> int:
        """As SIGTERM; 0, or 1 if the flow has failed."""
        STOP.set()
        work.ring()
        try:
            self._join(seconds)
        finally:
            STOP.clear()
        self._end()
        return 1 if self._error else 0

    def leave(self) -> None:
        self._source._leave()  # of the watchdog

    def close(self) -> None:
        self._source.close()
        for ring in self._rings:
            ring.close()
        logging.getLogger().removeHandler(self._lines)

    def health(self) -> dict[str, Any]:
        return self._health.page()

    def metric(self, name: str, **labels: str) -> float:
        """What this flow has added to the sum of a metric's samples that have these labels."""
        now = _samples()
        now.subtract(self._before)
        return sum(value for (of, given), value in now.items() if of == name and set(labels.items()) <= given)

    def story(self) -> str:
        """Whether it runs, or its error, and its log."""
        return "\n".join([f"{self.name}: {'runs' if self.running else 'ended'}", *self._lines.found, self._error])


class LiveIndex(_Running):
    """Writes the log's messages to the tables, as the index does, without a projection."""

    def __init__(self, settings: Settings, log: MemoryLog) -> None:
        super().__init__("index")
        self._log = log
        self._store = IndexStore(settings, "memory", None)
        self._writer = IndexWriter(settings, self._store, rules_of(settings), log)
        self._next = self._store.starts({(topic, 0): (0, 1 << 40) for topic in TOPICS})
        self._thread.start()

    def turn(self) -> bool:
        messages = [one for (topic, _), start in self._next.items() for one in self._log.read(topic, start)]
        ends = {(one.topic(), 0): one.at + 1 for one in messages}
        if messages:
            spans = {part: (self._next[part], end) for part, end in ends.items()}
            self._writer.write(decode(Batch(messages, spans)))  # type: ignore[arg-type]  # all that `decode` calls
            self._next |= ends
        return bool(messages)

    def close(self) -> None:
        self._store.close()

    def story(self) -> str:
        return f"index: {'runs' if self.running else 'ended'}\n{self._error}"


class _Lines(logging.Handler):
    """Log lines with their fields."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.name}: {record.getMessage()} {getattr(record, 'why', '')}")


def _chain(flow: Dataflow) -> tuple[Any, list[Callable[[list[Any]], list[Any]]]]:
    """The source and the steps of a dataflow that is one line."""
    operators: list[Any] = flow.substeps
    for before, after in pairwise(operators):
        assert after.up.stream_id == before.down.stream_id, "the dataflow has a branch"
    return operators[0].source, [operator.mapper for operator in operators[1:-1]]


def _samples() -> Counter[Any]:
    """Every sample of this process's metrics."""
    found: Counter[Any] = Counter()
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value  # type: ignore[assignment]  # a float
    return found


class LiveBed:
    """The log, the database and the flows of one test, with the methods of `FlowBed`."""

    def __init__(self, database: str) -> None:
        self.log = MemoryLog()
        self.db = psycopg.connect(database, autocommit=True)
        self.rings: list[KeyRing[Any]] = []
        self.started: list[LiveFlow | LiveIndex] = []
        self._base: dict[str, Any] = {
            "kafka_bootstrap": "127.0.0.1:1",
            "database": database,
            "allow_private_hosts": True,
        }

    def start(self, name: str, **settings: Any) -> LiveFlow:
        flow = LiveFlow(name, Settings(**self._base | settings), self.log, self.rings)
        self.started.append(flow)
        return flow

    def index(self) -> None:
        """Start the index."""
        self.started.append(LiveIndex(Settings(**self._base), self.log))

    def messages(self, topic: str) -> list[tuple[str, dict[str, Any]]]:
        """(key, value) of everything in a topic."""
        return [(one.out.key, json.loads(one.out.value)) for one in self.log.read(topic)]

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.db.execute(query.encode(), values).fetchall()

    def close(self) -> None:
        for one in self.started:
            one.kill()
        self.db.close()


@pytest.fixture
def live_bed(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveBed]:
    bed = LiveBed(database)

    def ring(*given: Any) -> KeyRing[Any]:
        bed.rings.append(KeyRing(*given))
        return bed.rings[-1]

    monkeypatch.setattr(logging.getLogger(), "level", logging.INFO)
    for module in ("relay", "labeler"):
        monkeypatch.setattr(f"connectors.atproto.{module}.HighWater", _NoPressure)
    for flow in FLOWS:
        monkeypatch.setattr(f"flows.{flow}.flow.KeyRing", ring)
    yield bed
    bed.close()
