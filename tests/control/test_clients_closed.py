"""After a failure control builds new clients and closes the old ones: its descriptors and threads do not grow."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from connectors.kafka.log import LogUnavailable
from connectors.kafka.producer import LogProducer, Out
from control.control_process import steps
from control.dead_letters import DeadLetters
from control.tasks.gauges import Gauges
from control.tasks.shared_offsets import SharedOffsets
from local.embedded.guarded_process import free_port
from schemas.settings import Settings
from schemas.topics import REPO_BACKFILL
from tests.support.flow_process import wait_until


def held() -> tuple[int, int]:
    """Open descriptors and threads of this process, with librdkafka's threads."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def turn(settings: Settings) -> None:
    """What control does with its clients between two failures, and what a request to its API does."""
    offsets = SharedOffsets(settings)
    for step in steps(settings, offsets):
        work, close = step.build()
        with suppress(LogUnavailable):
            work()
        close()
    with suppress(LogUnavailable):
        LogProducer(settings).send([Out(REPO_BACKFILL, "did:plc:none", b"{}")])
    gauges = Gauges(settings, offsets)
    gauges.refresh(heavy=True)
    gauges._connection.close()
    with offsets.use() as shared:
        shared.close()
    letters = DeadLetters(settings)
    with suppress(LogUnavailable):
        letters._letter((0, 0))
    letters.close()


def clients() -> set[str]:
    """Clients of the log in this process: each has a main thread."""
    found = set()
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has ended since
            if Path(f"/proc/self/task/{thread}/comm").read_text() == "rdk:main\n":
                found.add(thread)
    return found


def test_all_steps_have_four_clients_of_the_log(settings_of: Callable[..., Settings], database: str) -> None:
    """S5: each has threads that wake every second, and a connection that the broker serves. Three read lag for all steps, one
    reads dead letters."""
    settings = settings_of(database=database)
    before = clients()
    offsets = SharedOffsets(settings)
    built = [step.build() for step in steps(settings, offsets)]
    gauges = Gauges(settings, offsets)
    for work, _ in built:
        work()
    gauges.refresh(heavy=True)
    try:
        assert len(clients() - before) == 4, "of those before some may have ended since"
    finally:
        for _, close in built:
            close()
        gauges._connection.close()
        with offsets.use() as shared:
            shared.close()


@pytest.mark.parametrize("reachable", [True, False])
def test_clients_built_again_leave_no_descriptors(
    settings_of: Callable[..., Settings], database: str, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    """G6: with a broker that answers and one that does not, a turn leaves as many descriptors and threads as the one before."""
    settings = settings_of(database=database)
    if not reachable:
        settings = settings.replaced(kafka_bootstrap=f"127.0.0.1:{free_port()}")
        for name in ("log.ANSWER", "log.SETTLING", "offsets.ANSWER", "offsets.BROKER_WAIT", "producer.DELIVERY"):
            monkeypatch.setattr(f"connectors.kafka.{name}_SECONDS", 0.2)
    turn(settings)
    before = held()
    for _ in range(2):
        turn(settings)
    # librdkafka ends its threads a moment later
    wait_until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)), 120)
