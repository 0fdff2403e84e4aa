"""pytest plugin: `simulator(**config)` starts a simulated network as a process of its own and returns a Simulation."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support import zygote


@dataclass(frozen=True, slots=True)
class RepoTruth:
    """The expected state of one account."""

    did: str
    handle: str
    pds: int
    active: bool
    status: str | None
    rev: str
    commit: str
    data: str
    records: dict[str, str] = field(repr=False)
    """path → CID text"""
    handle_verified: bool = True
    """the handle's domain names this account"""


class Simulation:
    """A running simulated network, driven over its control API."""

    def __init__(self, process: zygote.Forked, urls: dict[str, Any]) -> None:
        self.process = process
        self._set_urls(urls)

    def _set_urls(self, urls: dict[str, Any]) -> None:
        self.plc: str = urls["plc"]
        self.dns: str = urls["dns"]
        self.relays: list[str] = urls["relays"]
        self.pdses: list[str] = urls["pds"]
        self.labelers: list[str] = urls["labelers"]
        self.labeler_dids: list[str] = urls["labeler_dids"]
        self.control: str = urls["control"]

    def _call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.control + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {body}: {error.read().decode()}") from error

    def state(self) -> dict[str, RepoTruth]:
        """DID → expected state, deleted accounts included."""
        with urllib.request.urlopen(self.control + "/state", timeout=300) as answer:
            rows = (RepoTruth(**json.loads(line)) for line in answer)
            return {row.did: row for row in rows}

    def summary(self) -> dict[str, Any]:
        """Counts: accounts, statuses, records, commits, seqs, labels."""
        return self._call("/state/summary")

    def labels(self) -> list[dict[str, Any]]:
        """The newest label per (src, uri, val, cid), negations included."""
        return self._call("/labels")

    def faults(self) -> dict[str, Any]:
        """{"fired": {name: count}, "active", "hosts": {url: {"total", "max_in_window", …}}, …}"""
        return self._call("/faults")

    def fetches(self) -> dict[str, int]:
        """DID → number of getRepo requests."""
        return self._call("/fetches")

    def fired(self, name: str) -> int:
        """How often a fault has fired."""
        return self.faults()["fired"].get(name, 0)

    def set_faults(self, **faults: Any) -> None:
        """name=probability, name={parameters}, name=None (off); clear=True switches all off first."""
        self._call("/faults", faults)

    def limits(self, **wanted: Any) -> None:
        """limit, seconds, pds (index), reset: the PDS rate limit."""
        self._call("/limits", wanted)

    def streams(self, **wanted: Any) -> list[dict[str, Any]]:
        """relay (index), window, outdated, future, held: how the relays' streams behave; see `POST /streams` of the control API."""
        return self._call("/streams", wanted)

    def writer(self, rate: float = 0, **wanted: Any) -> dict[str, Any]:
        """Set the writer's rate in steps per second; or perform now: steps=n, prebuild=n (commits only)."""
        return self._call("/writer", wanted or ({"rate": rate} if rate else {"stop": True}))

    def quiesce(self, **wanted: Any) -> dict[str, Any]:
        """Stop the writer. Returns when all connected readers have received everything."""
        return self._call("/quiesce", wanted)

    def op(self, name: str, **arguments: Any) -> dict[str, Any]:
        """One operation: create, update, delete, handle, deactivate, activate, takedown, delete_account, new_account, …"""
        return self._call("/op", {"op": name, **arguments})

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        code = self.process.wait(timeout=60)
        if self.process.stdout:
            self.process.stdout.close()
        return code


def start_simulation(**config: Any) -> Simulation:
    """Start `python -m simulator` with SimulatorConfig fields as keywords."""
    command = ["module", "simulator"]
    for name, value in config.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            command += [flag] if value else []
        else:
            command += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    process = zygote.spawn(command, stdout=subprocess.PIPE, stderr=2)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the simulator did not start: exit code {process.wait()}")
    return Simulation(process, json.loads(line))


@contextmanager
def simulations() -> Iterator[Callable[..., Simulation]]:
    """Factory: `simulator(repos=50, seed=7, …) -> Simulation`; all are stopped at the end."""
    started: list[Simulation] = []

    def factory(**config: Any) -> Simulation:
        simulation = start_simulation(**config)
        started.append(simulation)
        return simulation

    try:
        yield factory
    finally:
        for simulation in started:
            if simulation.process.poll() is None:
                simulation.stop()


@pytest.fixture
def simulator() -> Iterator[Any]:
    """The factory of `simulations`; all are stopped at the end of the test."""
    with simulations() as factory:
        yield factory
