"""pytest plugin: `settings_of(**more)` → settings with topics of the test's own, applied; `store`, the repos of `settings`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connectors.kafka import topics
from connectors.postgres.repo_queue import RepoQueue
from schemas.settings import Settings, load
from tests.support.broker import LogScope


@pytest.fixture
def settings_of(log_scope: LogScope) -> Callable[..., Settings]:
    """Two partitions, no replicas, and what is given; the topics go with the test."""

    def make(**more: Any) -> Settings:
        given: dict[str, Any] = {"kafka_bootstrap": log_scope.bootstrap, "kafka_topic_prefix": log_scope.prefix}
        chosen = load(**given, kafka_partitions=2, kafka_replication=1, **more)
        topics.apply(chosen)
        log_scope.created += [topic.name for topic in topics.declared(chosen)]
        return chosen

    return make


@pytest.fixture
def store(settings: Settings) -> Iterator[RepoQueue]:
    """The repos of the module's own `settings`."""
    made = RepoQueue(settings)
    yield made
    made.close()
