"""The simulated network as a process of a benchmark; its repositories are made before the measurement."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Simulated:
    """Its URLs and its pid."""

    pid: int
    urls: dict[str, Any]

    def ask(self, path: str, body: Any = None) -> Any:
        """Call its control API."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.urls["control"] + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def accounts(self) -> list[tuple[str, str]]:
        """(DID, PDS URL) of every active account."""
        found = []
        for pds in self.urls["pds"]:
            cursor = ""
            while True:
                page = _get(f"{pds}/xrpc/com.atproto.sync.listRepos?limit=1000{cursor}")
                found += [(row["did"], pds) for row in page["repos"] if row["active"]]
                if "cursor" not in page:
                    break
                cursor = f"&cursor={page['cursor']}"
        return found

    def cars(self, accounts: list[tuple[str, str]]) -> list[bytes]:
        """getRepo of every account: warms the simulator's cache, and is the input of the floor."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda at: _read(f"{at[1]}/xrpc/com.atproto.sync.getRepo?did={at[0]}"), accounts))


@contextmanager
def simulated(**config: Any) -> Iterator[Simulated]:
    """Start `python -m simulator` with fields of SimulatorConfig; stopped at the end."""
    command = [sys.executable, "-m", "simulator"]
    for name, value in config.items():
        flag = "--" + name.replace("_", "-")
        command += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"the simulator did not start: exit code {child.wait()}")
        try:
            yield Simulated(child.pid, json.loads(line))
        finally:
            child.terminate()
            child.wait(30)


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=300) as answer:
        body: bytes = answer.read()
        return body


def _get(url: str) -> Any:
    return json.loads(_read(url))
