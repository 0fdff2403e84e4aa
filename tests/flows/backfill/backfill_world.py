"""A small world around the backfill flow: simulated network, topics, database, and the parts of list_repos and control it needs."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from connectors.kafka.log import cluster_id
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from schemas import wire
from schemas.settings import Settings
from tests.support.flow_process import FlowProcess, create_topics, read_topic, wait_until
from tests.support.simulation import RepoTruth, Simulation


@dataclass(slots=True)
class Attempted:
    """What the log holds of one attempt: the creates in order, and the outcome, if there is one."""

    creates: list[Any] = field(default_factory=list)
    outcome: Any = None

    @property
    def records(self) -> dict[str, str]:
        return {f"{event.collection}/{event.rkey}": event.cid for event in self.creates}


class BackfillWorld(ABC):
    """Everything but the flow itself, which runs in processes (`World`) or in the test's own loop (`WorldHere`)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = RepoQueue(settings)
        self._db = psycopg.connect(settings.database, autocommit=True)

    @abstractmethod
    def send(self, messages: list[Out]) -> None:
        """Write to the log."""

    @abstractmethod
    def read(self, topic: str) -> list[Any]:
        """All messages of a topic."""

    @abstractmethod
    def until(self, condition: Callable[[], Any], seconds: float = 120.0, what: Callable[[], str] | None = None) -> Any:
        """Wait until the condition holds; its value."""

    @abstractmethod
    def cluster(self) -> str:
        """Id of the log's cluster."""

    def close(self) -> None:
        self.store.close()
        self._db.close()

    def list_all(self, truth: dict[str, RepoTruth], topic: str = "repo_backfill") -> list[wire.RepoTask]:
        """As list_repos: rows first, then messages. Every account that the network calls active."""
        listed = [ListedRepo(did, one.rev) for did, one in truth.items() if one.active]
        tasks = self.store.discover(listed).tasks
        self.queue(tasks, topic)
        return tasks

    def queue(self, tasks: list[wire.RepoTask], topic: str = "repo_backfill") -> None:
        if tasks:
            self.send([Out(topic, task.did, wire.encode(task)) for task in tasks])

    def schedule(self) -> int:
        """As control: queue what is due."""
        tasks = self.store.due(1000)
        self.queue(tasks, "repo_resync")
        return len(tasks)

    def rows(self) -> dict[str, dict[str, Any]]:
        with self._db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return {row["did"]: row for row in cursor.execute("select * from sluice.repo")}

    def execute(self, sql: str, *values: Any) -> list[Any]:
        cursor = self._db.execute(sql.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def attempts(self) -> dict[tuple[str, int], Attempted]:
        """(did, attempt) → what the log holds of it. Fails where a message follows its attempt's outcome."""
        found: dict[tuple[str, int], Attempted] = defaultdict(Attempted)
        for message in self.read("firehose_backfill"):
            event = wire.decode_backfill(message.value())
            assert message.key().decode() == event.did
            attempt = found[event.did, event.attempt]
            assert attempt.outcome is None, f"{event} after the outcome"
            if isinstance(event, wire.CreateEvent):
                attempt.creates.append(event)
            else:
                attempt.outcome = event
        return dict(found)

    def produced(self) -> int:
        """Attempts whose outcome is known to be in the log, and repos that ended."""
        query = (
            "select count(*) from sluice.repo where produced_offset is not null or phase in ('failed', 'unavailable')"
        )
        return int(self.execute(query)[0][0])

    def run_to_end(self, count: int) -> None:
        """As control: reap and schedule, until so many repos have produced an outcome."""
        cluster = self.cluster()

        def done() -> bool:
            self.store.reap(cluster, 0.0)
            self.schedule()
            return self.produced() >= count

        self.until(done, what=lambda: f"{count} produced; rows {self.summary()}")

    def summary(self) -> str:
        rows = self.execute(
            "select phase, produced_offset is not null, last_error, count(*) from sluice.repo group by 1, 2, 3 order by 4 desc"
        )
        return json.dumps(rows[:20])

    def check(self, truth: dict[str, RepoTruth]) -> None:
        """The log's newest attempt of every active repo is its snapshot, complete and closed by its outcome."""
        attempts, rows = self.attempts(), self.rows()
        for did, one in truth.items():
            if not one.active:
                continue
            newest = attempts[did, rows[did]["attempt"]]
            assert newest.outcome is not None, did
            assert newest.outcome.status == "synced"
            assert newest.outcome.data == one.data
            assert newest.outcome.rev == one.rev
            assert newest.outcome.count == len(newest.creates) == len(one.records)
            assert newest.records == one.records


class World(BackfillWorld):
    """The flow as processes, on a real log. Those that it started end with `close`."""

    def __init__(self, folder: Path, bootstrap: str, database: str, simulation: Simulation, **settings: Any) -> None:
        self.folder = folder
        self.simulation = simulation
        given = {
            "kafka_bootstrap": bootstrap,
            "kafka_topic_prefix": folder.name.replace("_", "-") + "-",
            "transport_session_seconds": 6.0,
            "epoch_seconds": 0.2,
        }
        super().__init__(Settings(**common(simulation, database) | given | settings))
        self.producer = LogProducer(self.settings)
        self.processes: list[FlowProcess] = []
        create_topics(bootstrap, self.settings.kafka_topic_prefix)

    def start(self, **overrides: Any) -> FlowProcess:
        settings = self.settings.replaced(**overrides)
        process = FlowProcess("backfill", settings, self.folder / f"backfill-{len(self.processes)}.log")
        self.processes.append(process)
        return process

    def kill(self, process: FlowProcess) -> None:
        """SIGKILL. Returns when PostgreSQL has closed the process's connections: their last commits are visible then."""
        ports = [one.laddr.port for one in psutil.Process(process.process.pid).net_connections("tcp") if one.laddr]
        process.kill()
        left = "select count(*) from pg_stat_activity where datname = current_database() and client_port = any(%s)"
        self.until(lambda: self.execute(left, ports) == [(0,)])

    def close(self) -> None:
        for process in self.processes:
            if process.running:
                process.kill()
        super().close()
        del self.producer  # or it goes on calling for a broker that ends with the session

    def send(self, messages: list[Out]) -> None:
        self.producer.send(messages)

    def read(self, topic: str) -> list[Any]:
        return read_topic(self.settings.kafka_bootstrap, self.settings.topic(topic))

    def until(self, condition: Callable[[], Any], seconds: float = 120.0, what: Callable[[], str] | None = None) -> Any:
        return wait_until(condition, seconds, what or "")

    def cluster(self) -> str:
        return cluster_id(self.settings)


def common(simulation: Simulation, database: str) -> dict[str, Any]:
    """Settings of both kinds of worlds: short waits between attempts."""
    return {
        "database": database,
        "plc": simulation.plc,
        "allow_private_hosts": True,
        "retry_first_seconds": 0.2,
        "retry_max_seconds": 1.0,
        "rate_limit_pause_seconds": 1.0,
        "kafka_partitions": 4,
        "kafka_replication": 1,
    }
