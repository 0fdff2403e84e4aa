"""Fixtures of the log: a real broker for the session, names of one's own for each test, a broker to kill.

`TEST_CONTAINERS=1` with a container engine at hand runs the session's broker as Redpanda instead.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from local.embedded.embedded_log import EmbeddedLog
from tests.support.log_listeners import ProxiedLog

ADMIN_SECONDS = 60


def containers_wanted() -> bool:
    return os.environ.get("TEST_CONTAINERS") == "1"


@dataclass(slots=True)
class LogScope:
    """Names and topics of one test on the shared broker."""

    bootstrap: str
    prefix: str
    admin: AdminClient
    created: list[str] = field(default_factory=list)

    def name(self, name: str) -> str:
        """A topic, group or transactional id that no other test has."""
        return f"{self.prefix}{name}"

    def create(self, name: str, partitions: int = 1, **config: str | int) -> str:
        """Makes the topic (settings with underscores for dots: retention_ms=…) and returns its full name."""
        topic = self.name(name)
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        create_topic(self.admin, topic, partitions, settings)
        self.created.append(topic)
        return topic


def create_topic(admin: AdminClient, topic: str, partitions: int = 1, config: dict[str, str] | None = None) -> None:
    new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=config or {})
    for made in admin.create_topics([new], operation_timeout=ADMIN_SECONDS).values():
        made.result(ADMIN_SECONDS)


def admin_client(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


@pytest.fixture(scope="session")
def log_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedLog]:
    """The session's embedded broker, with a second listener for `log_proxy`. Do not kill it; take `private_log`."""
    with ProxiedLog(tmp_path_factory.mktemp("log")) as server:
        yield server


@pytest.fixture(scope="session")
def log(request: pytest.FixtureRequest) -> Iterator[str]:
    """Bootstrap address of the session's broker."""
    if not containers_wanted():
        yield request.getfixturevalue("log_server").bootstrap
        return
    from testcontainers.community.kafka import RedpandaContainer

    with RedpandaContainer() as server:
        yield server.get_bootstrap_server()


@pytest.fixture
def log_scope(log: str) -> Iterator[LogScope]:
    """Unique names for this test; topics made through it are deleted at its end."""
    scope = LogScope(log, f"t{secrets.token_hex(4)}-", admin_client(log))
    yield scope
    if scope.created:
        for deleted in scope.admin.delete_topics(scope.created, operation_timeout=ADMIN_SECONDS).values():
            deleted.result(ADMIN_SECONDS)


@pytest.fixture
def private_log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    """A running broker of this test's own, to be killed and restarted at will."""
    with EmbeddedLog(tmp_path / "log", heap_mb=256) as server:
        yield server
