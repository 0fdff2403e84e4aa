"""Fixture `flow_bed`: a flow in a process of its own over the session's broker and a database of the test's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from schemas.settings import Settings
from tests.support.broker import LogScope
from tests.support.flow_process import FlowProcess, create_topics, read_topic, watermarks

PARTITIONS = 4


class FlowBed:
    """Topics under a prefix of their own, settings that name them, and the flow processes of one test."""

    def __init__(self, log_scope: LogScope, database: str, folder: Path) -> None:
        self._folder = folder
        self.bootstrap = log_scope.bootstrap
        self.prefix = log_scope.prefix
        self.base: dict[str, Any] = {
            "kafka_bootstrap": self.bootstrap,
            "database": database,
            "kafka_topic_prefix": self.prefix,
            "allow_private_hosts": True,
            "epoch_seconds": 0.2,
        }
        self.started: list[FlowProcess] = []
        self.db = psycopg.connect(database, autocommit=True)
        log_scope.created += create_topics(self.bootstrap, self.prefix, PARTITIONS)

    def start(self, name: str, **settings: Any) -> FlowProcess:
        process = FlowProcess(name, Settings(**self.base | settings), self._folder / f"{name}.log")
        self.started.append(process)
        return process

    def messages(self, topic: str) -> list[tuple[str, dict[str, Any]]]:
        """(key, value) of everything in a topic."""
        return [(m.key().decode(), json.loads(m.value())) for m in read_topic(self.bootstrap, self.prefix + topic)]

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.db.execute(query.encode(), values).fetchall()

    def settle(self, topic: str, group: str) -> None:
        """Put a consumer group at the end of a topic, as if it had processed everything."""
        consumer = Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": f"{self.prefix}sluice-{group}", "log_level": 0}
        )
        name = self.prefix + topic
        ends = [TopicPartition(name, part) for part in range(PARTITIONS)]
        for end in ends:
            end.offset = watermarks(consumer, end)[1]
        consumer.commit(offsets=ends, asynchronous=False)
        consumer.close()

    def close(self) -> None:
        for process in self.started:
            if process.running:
                process.kill()
        self.db.close()


@pytest.fixture
def flow_bed(log_scope: LogScope, database: str, tmp_path: Path) -> Iterator[FlowBed]:
    bed = FlowBed(log_scope, database, tmp_path)
    yield bed
    bed.close()
