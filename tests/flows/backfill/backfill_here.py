"""The backfill flow in the test's own loop: its real source, pipelines and sink, on a log and a network in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from prometheus_client import REGISTRY

from connectors.kafka.producer import Out
from connectors.postgres.repo_queue import RepoQueue
from connectors.runtime.health import Health
from flows.backfill.sink import AttemptSinkPartition
from flows.backfill.source import BackfillSource
from schemas.settings import Settings
from tests.flows.backfill.backfill_world import BackfillWorld, common
from tests.support.in_process.memory_log import MemoryFeed, MemoryLog, MemoryPressure, Positions
from tests.support.in_process.own_loop import OwnLoop
from tests.support.in_process.simulated_here import SimulationHere


class FlowHere:
    """One backfill flow."""

    def __init__(self, world: WorldHere, settings: Settings) -> None:
        self._own = world.own
        self.health = Health("backfill", exported=False)
        self._counted = dict(samples())
        feed = MemoryFeed(world.log, ("repo_resync", "repo_backfill"), world.committed)
        mark = settings.kafka_high_water_messages
        pressure = MemoryPressure(world.log, "firehose_backfill", world.indexed, mark)
        self._source = self._own.begin(
            lambda: BackfillSource(settings, self.health, feed, lambda: pressure.paused, self._own.environment)
        )
        sink = AttemptSinkPartition(world.log, RepoQueue(settings), self.health)
        self._sink = sink
        self._engine = self._own.engine(self._source, sink.write_batch)

    @property
    def running(self) -> bool:
        return not self._engine.done()

    def metric(self, name: str, **labels: str) -> float:
        """By how much a metric's samples with these labels have grown since the start."""
        total = 0.0
        for key, value in samples():
            if key[0] == name and labels.items() <= dict(key[1]).items():
                total += value - self._counted.get(key, 0.0)
        return total

    def kill(self) -> None:
        """End at once. What it has claimed stays claimed."""
        self._own.stop(self._engine)
        self._source.close()
        self._own.pass_time(0.1)
        self._sink.close()


def samples() -> list[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
    """((name, labels), value) of this process's counters."""
    found = itertools.chain.from_iterable(metric.samples for metric in REGISTRY.collect() if metric.type == "counter")
    return [((sample.name, frozenset(sample.labels.items())), sample.value) for sample in found]


class WorldHere(BackfillWorld):
    """See the module. `simulation`: SimulatorConfig fields; `settings`: as those of `World`."""

    def __init__(self, database: str, simulation: dict[str, Any], **settings: Any) -> None:
        self.own = OwnLoop(database)
        self.simulation = SimulationHere(self.own, **simulation)
        super().__init__(Settings(**common(self.simulation, database) | settings))
        self.log = MemoryLog()
        self.committed: Positions = {}  # of the backfill's group
        self.indexed: Positions = {}  # of the index's group
        self.flows: list[FlowHere] = []

    def start(self, **overrides: Any) -> FlowHere:
        self.flows.append(FlowHere(self, self.settings.replaced(**overrides)))
        return self.flows[-1]

    def close(self) -> None:
        for flow in self.flows:
            if flow.running:
                flow.kill()
        self.own.close()
        super().close()

    def send(self, messages: list[Out]) -> None:
        self.log.send(messages)

    def read(self, topic: str) -> list[Any]:
        return self.log.read(topic)

    def until(
        self, condition: Callable[[], Any], seconds: float = 3600.0, what: Callable[[], str] | None = None
    ) -> Any:
        return self.own.until(condition, seconds, what)

    def cluster(self) -> str:
        return "in memory"
