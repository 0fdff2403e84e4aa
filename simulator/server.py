"""The simulated network as one process; each server has its own loopback port.

`SimulatedNetwork` starts and stops it inside an event loop. `serve` runs it until SIGTERM, SIGINT or the end of its parent.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvloop
from aiohttp import web

from simulator.config import SimulatorConfig
from simulator.faults.faults import Faults
from simulator.network import Network
from simulator.servers.control_api import ControlApi
from simulator.servers.dns import NameServer
from simulator.servers.labeler import Labeler
from simulator.servers.loopback import Listener, Loopback
from simulator.servers.pds import Pds
from simulator.servers.plc import PlcDirectory
from simulator.servers.relay import Relay
from simulator.servers.web_hosts import WebHosts
from simulator.writer import Writer

__all__ = ["SimulatedNetwork", "SimulatorConfig", "serve"]

Ready = Callable[[dict[str, Any]], None]


class SimulatedNetwork:
    """PLC directory, DNS, PDSes, relays, labelers, writer and control API of one configuration.

    `urls`, after `start`: {"plc", "dns": "HOST:PORT", "relays": […], "pds": […], "labelers": […], "labeler_dids": […],
    "control"}. `listener`: where the servers listen; by default at loopback ports.
    """

    def __init__(self, config: SimulatorConfig, listener: Listener | None = None) -> None:
        self.config = config
        self._listener = listener or Loopback(config.port)
        self.faults = Faults(config.seed)
        self.faults.switch(config.faults)
        after = config.port and config.port + 3 + config.pdses + config.relays + config.labelers
        self.web_hosts = WebHosts(config.web_accounts, self.faults, after)
        self.network = Network(config, self.faults, self.web_hosts.dids)
        self.plc = PlcDirectory(self.network, self.faults)
        self.names = NameServer(self.network, self.faults)
        self.pdses = [Pds(self.network, self.faults, index) for index in range(config.pdses)]
        self.relays = [Relay(self.network, self.faults, index) for index in range(config.relays)]
        self.labelers = [Labeler(self.network, self.faults, index) for index in range(config.labelers)]
        self.writer = Writer(self.network, self.labelers, self.faults)
        self.control = ControlApi(
            network=self.network,
            pdses=self.pdses,
            relays=self.relays,
            labelers=self.labelers,
            writer=self.writer,
        )
        self.urls: dict[str, Any] = {}
        self._runners: list[web.AppRunner] = []
        self._writing: asyncio.Task[None] | None = None

    async def start(self) -> dict[str, Any]:
        """Start all servers, prebuild what the configuration requests, start the writer. Returns `urls`."""
        plc = await self._listener.serve(self.plc.application())
        control = await self._listener.serve(self.control.application())
        relays = [await self._listener.serve(relay.application()) for relay in self.relays]
        pds_urls = [await self._listener.serve(pds.application()) for pds in self.pdses]
        for pds in self.pdses:
            pds.others = pds_urls
        labelers = [await self._listener.serve(labeler.application()) for labeler in self.labelers]
        self.urls = {"plc": plc, "relays": relays, "pds": pds_urls, "labelers": labelers, "control": control}
        self.urls["dns"] = await self._listener.serve_names(self.names)
        self.urls["labeler_dids"] = [labeler.did for labeler in self.labelers]
        self.control.urls = self.urls
        self.plc.pds_urls = pds_urls
        for pds, url in zip(self.pdses, pds_urls, strict=True):
            pds.url = url
        for relay in self.relays:
            relay.pds_urls = pds_urls
        for labeler, url in zip(self.labelers, labelers, strict=True):
            labeler.url = url
            self.plc.labelers[labeler.did] = labeler.document()
        self._runners.append(await self.web_hosts.start(self.plc.account_document))
        if self.config.prebuild:
            for account in self.network.accounts.all:
                await self.network.repositories.initial(account)
        if self.config.prebuilt_commits:
            await self.control.prebuild(self.config.prebuilt_commits)
        self._writing = asyncio.create_task(self.writer.run())
        self._writing.add_done_callback(_exit_on_failure)
        return self.urls

    async def stop(self) -> None:
        """Stop the writer, close all servers and connections."""
        if self._writing is not None:
            self._writing.cancel()
        await self._listener.close()
        for runner in self._runners:
            await runner.cleanup()


def _exit_on_failure(task: asyncio.Task[None]) -> None:
    """End the process if the writer failed: tests would take a network without events for a healthy one."""
    if not task.cancelled() and task.exception() is not None:
        print(f"simulator: the writer failed: {task.exception()!r}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(70)


def print_ready(urls: dict[str, Any]) -> None:
    """Print the URLs as one JSON line."""
    print(json.dumps(urls), flush=True)  # noqa: T201  this line is the interface


def serve(config: SimulatorConfig, *, ready: Ready = print_ready) -> int:
    """Run the network until SIGTERM, SIGINT or the end of the parent process. Returns the exit code.

    `ready` receives the URLs once all servers listen. Raises OSError if a port is in use, UnknownFaultError for an unknown
    fault name.
    """
    return uvloop.run(_serve(config, ready))


async def _serve(config: SimulatorConfig, ready: Ready) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    simulated = SimulatedNetwork(config)
    parent = os.getppid()
    try:
        ready(await simulated.start())
        while not stopping.is_set() and os.getppid() == parent:
            try:
                await asyncio.wait_for(stopping.wait(), 0.5)
            except TimeoutError:
                continue
    finally:
        await simulated.stop()
    return 0
