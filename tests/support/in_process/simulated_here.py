"""The simulated network in the test's own loop, driven as a Simulation is."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from simulator.server import SimulatedNetwork, SimulatorConfig
from tests.support.in_process.memory_http import MemoryConnector
from tests.support.in_process.own_loop import OwnLoop
from tests.support.simulation import RepoTruth, Simulation


class SimulationHere(Simulation):
    """A simulated network of one OwnLoop, which stops it."""

    def __init__(self, own: OwnLoop, **config: Any) -> None:
        self._own = own
        self._network = own.begin(lambda: SimulatedNetwork(SimulatorConfig(**config), own.network))
        self._set_urls(own.run(self._network.start()))

    def get(self, url: str) -> bytes:
        """The body of an answer."""
        return self._own.run(self._ask(url, None))

    def state(self) -> dict[str, RepoTruth]:
        rows = (RepoTruth(**json.loads(line)) for line in self.get(self.control + "/state").splitlines())
        return {row.did: row for row in rows}

    def _call(self, path: str, body: Any = None) -> Any:
        return json.loads(self._own.run(self._ask(self.control + path, body)))

    async def _ask(self, url: str, body: Any) -> bytes:
        async with aiohttp.ClientSession(connector=MemoryConnector(self._own.network)) as session:
            method = "GET" if body is None else "POST"
            async with session.request(method, url, json=body) as answer:
                data = await answer.read()
                assert answer.status == 200, f"{url} {body}: {data.decode()}"
                return data
