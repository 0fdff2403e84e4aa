"""Kills of `serve` and of the broker while a client reads: nothing is lost, each repo's order is kept, numbers stay."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from connectors.kafka import topics
from connectors.kafka.log import LogUnavailable
from connectors.kafka.producer import LogProducer
from connectors.runtime.health import Health
from local.embedded.embedded_log import EmbeddedLog
from local.embedded.guarded_process import free_port
from schemas.settings import Settings, load
from serve import serve_process
from tests.serve.streams import V2, Stream, commit, did, op

pytestmark = pytest.mark.anyio
REPOS = 5


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Replica:
    """`serve_process.run` in a process of its own, to be killed and started again at the same port."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.start()

    def start(self) -> None:
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve_process.run, args=(self._settings, Health("serve")), daemon=True
        )
        self._process.start()

    def kill(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(10)


class Follower:
    """A client that keeps its cursor, and reconnects as clients do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.events: list[dict[str, Any]] = []
        self.repeated: list[dict[str, Any]] = []
        self.connections = 0

    async def run(self) -> None:
        while True:
            with suppress(aiohttp.ClientError, ConnectionError, TypeError):
                parameters = {"cursor": self.events[-1]["seq"]} if self.events else {"cursor": 10**15}
                async with Stream(self._port, V2, **parameters) as stream:
                    self.connections += 1
                    while True:
                        self._take((await stream.next(600))["payload"])
            await asyncio.sleep(0.1)

    def _take(self, event: dict[str, Any]) -> None:
        if "seq" not in event:
            return
        if self.events and event["seq"] <= self.events[-1]["seq"]:
            self.repeated.append(event)
        else:
            self.events.append(event)


class Writer(threading.Thread):
    """Writes commits of the repos in turn until `stop`, and repeats what the broker did not acknowledge."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._settings = settings
        self._stopped = threading.Event()
        self.count = 0

    def run(self) -> None:
        log = LogProducer(self._settings)
        while not self._stopped.wait(0.02):
            with suppress(LogUnavailable):
                log.send([commit(did(self.count % REPOS), f"3l{self.count:011}", op(str(self.count)))])
                self.count += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join(150)


async def until(condition: Callable[[], bool], seconds: float = 150) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def test_kills_of_two_replicas_and_of_the_broker(private_log: EmbeddedLog) -> None:
    """V1: nothing is lost, each event has one number at both replicas, and what comes again is the same event."""
    ports = [free_port() for _ in range(2)]
    settings = load(kafka_bootstrap=private_log.bootstrap, kafka_partitions=4, kafka_replication=1)
    topics.apply(settings)
    replicas = [Replica(settings.replaced(serve_listen=f"127.0.0.1:{port}")) for port in ports]
    clients, writer = [Follower(port) for port in ports], Writer(settings)
    tasks = [asyncio.create_task(client.run()) for client in clients]
    try:
        writer.start()
        for replica, client in zip(replicas, clients, strict=True):
            await until(lambda client=client: len(client.events) >= 10)  # type: ignore[misc]
            replica.kill()
            replica.start()
            await until(lambda client=client: client.connections > 1)  # type: ignore[misc]
        before = writer.count
        await asyncio.to_thread(private_log.kill)
        await asyncio.to_thread(private_log.start)
        await until(lambda: writer.count > before + 50)
        await asyncio.to_thread(writer.stop)
        wanted = {str(number) for number in range(writer.count)}
        for client in clients:
            await until(lambda client=client: {event["rkey"] for event in client.events} == wanted)  # type: ignore[misc]
        first, second = [client.events for client in clients]
    finally:
        for task in tasks:
            task.cancel()
        for replica in replicas:
            replica.kill()
    assert first == second, "both replicas gave every event the same number"
    for who in {event["did"] for event in first}:
        revs = [event["rev"] for event in first if event["did"] == who]
        assert revs == sorted(revs)
    assert all(one in client.events for client in clients for one in client.repeated), (
        "at least once: the same event again"
    )
