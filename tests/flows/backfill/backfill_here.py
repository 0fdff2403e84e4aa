"""The backfill flow in the test's own loop: its real source, pipelines and sink, on a log and a network in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connectors.kafka.producer import Out
from connectors.postgres.repo_queue import RepoQueue
from connectors.runtime.health import Health
from flows.backfill.sink import AttemptSinkPartition
from flows.backfill.source import BackfillSource
from schemas.settings import Settings
from tests.flows.backfill.backfill_world import BackfillWorld, common
from tests.support.in_process.flow_here import FlowHere
from tests.support.in_process.memory_log import MemoryFeed, MemoryLog, MemoryPressure, Positions
from tests.support.in_process.own_loop import OwnLoop
from tests.support.in_process.simulated_here import SimulationHere


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
        settings, health = self.settings.replaced(**overrides), Health("backfill", exported=False)
        feed = MemoryFeed(self.log, ("repo_resync", "repo_backfill"), self.committed)
        pressure = MemoryPressure(
            self.log, "firehose_backfill", self.indexed, settings.tuning.kafka_high_water_messages
        )
        sink = AttemptSinkPartition(self.log, RepoQueue(settings), health)

        def source() -> BackfillSource:
            return BackfillSource(settings, health, feed, lambda: pressure.paused, self.own.environment)

        self.flows.append(FlowHere(self.own, health, source, sink.write_batch, [sink.close]))
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
