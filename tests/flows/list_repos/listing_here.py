"""The list_repos flow in the test's own loop: its real source, crawler and steps, on a log and a network in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg

from connectors.postgres.repo_queue import RepoQueue
from connectors.runtime.health import Health
from flows.list_repos.flow import discoverer
from flows.list_repos.listing_jobs import ListingJobs
from flows.list_repos.listing_loop import ListedPage
from flows.list_repos.source import CrawlSource
from schemas.settings import Settings
from tests.support.in_process.flow_here import FlowHere
from tests.support.in_process.memory_log import MemoryLog, MemoryPressure, Positions
from tests.support.in_process.own_loop import OwnLoop
from tests.support.in_process.simulated_here import SimulationHere


class ListingHere:
    """See the module. `simulation`: SimulatorConfig fields."""

    def __init__(self, database: str, simulation: dict[str, Any]) -> None:
        self.own = OwnLoop(database)
        self.simulation = SimulationHere(self.own, **simulation)
        self.settings = Settings(database=database, allow_private_hosts=True)
        self.log = MemoryLog()
        self.fetched: Positions = {}  # of the backfill's group
        self.flows: list[FlowHere] = []
        self.db = psycopg.connect(database, autocommit=True)
        self.until = self.own.until

    def start(self, **overrides: Any) -> FlowHere:
        settings, health = self.settings.replaced(**overrides), Health("list_repos", exported=False)
        pressure = MemoryPressure(self.log, "repo_backfill", self.fetched, settings.tuning.kafka_high_water_messages)
        jobs, queue = ListingJobs(settings), RepoQueue(settings)
        discover = discoverer(queue, jobs)

        def source() -> CrawlSource:
            return CrawlSource(settings, health, jobs, pressure, self.own.environment)

        def write(pages: list[ListedPage]) -> None:
            for page in pages:
                self.log.send(discover(page))

        self.flows.append(FlowHere(self.own, health, source, write, [queue.close]))
        return self.flows[-1]

    def close(self) -> None:
        for flow in self.flows:
            if flow.running:
                flow.kill()
        self.own.close()
        self.db.close()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.db.execute(query.encode(), values).fetchall()

    def listed(self) -> set[str]:
        """DIDs with a row."""
        return {row[0] for row in self.rows("select did from sluice.repo")}

    def tasks(self) -> Counter[str]:
        """How many tasks each DID has in the log."""
        return Counter(message.key().decode() for message in self.log.read("repo_backfill"))

    def job(self, upstream: str) -> dict[str, Any]:
        """The job of a listing of the settings; empty if there is none yet."""
        names = ("status", "listed", "queued", "duplicates", "cutoff", "completed_at", "checkpoint")
        rows = self.rows(f"select {', '.join(names)} from sluice.backfill_job where name = %s", f"list {upstream}")
        return dict(zip(names, rows[0], strict=True)) if rows else {}

    def completed(self, upstream: str) -> bool:
        """Its listing is at its end. (Whether its repos are done is decided by control, which does not run here.)"""
        return self.job(upstream).get("checkpoint", {}).get("done") is True


Here = Callable[..., ListingHere]
