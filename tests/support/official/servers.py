"""pytest plugin: servers that nobody here wrote. `official_network(ozone=…)` starts the official PLC, PDS and Ozone.

Their npm packages are installed once into `.sluice/official` (git-ignored), under a lock; `python -m tests.support.official.servers`
does only that, for whoever wants it done in the background beforehand. What is missing is an error that names it, never
a skip: without these servers nothing here is accepted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

HERE = ROOT / "tests" / "acceptance"
FOLDER = ROOT / ".sluice" / "official"
OLDEST_NODE = 20
INSTALL_SECONDS = 900
START_SECONDS = 120
QUICK_BUILD = {"CFLAGS": "-O0", "CXXFLAGS": "-O0"}  # SQLite is compiled in 20 CPU seconds; optimized, it takes 100
REMEDY = "the acceptance tests need Node.js 20 or newer with its headers, npm, make, a C++ compiler and python3"


class OfficialServersUnavailable(Exception):
    """The official servers cannot be installed or started; the message says what is missing."""


def install() -> Path:
    """The `node_modules` folder with the packages of `acceptance/package.json`. Raises OfficialServersUnavailable."""
    node = node_facts()

    def compiled() -> None:
        npm_install(FOLDER, "--no-package-lock", environment={**own_headers(node), **QUICK_BUILD})
        try_compiled_module()

    return install_once(FOLDER, HERE / "package.json", json.dumps(node), compiled)


def install_once(folder: Path, manifest: Path, suits: str, install: Callable[[], None]) -> Path:
    """`folder`/node_modules, made by `install` under a lock, and anew when `manifest` or `suits` is another than then."""
    wanted = hashlib.sha256(manifest.read_bytes() + suits.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "installed"
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(folder / "node_modules", ignore_errors=True)
            shutil.copyfile(manifest, folder / "package.json")
            install()
            stamp.write_text(wanted)
    return folder / "node_modules"


def node_facts() -> dict[str, str]:
    """Version, ABI (compiled modules fit only one) and binary of the Node.js that `node` is."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            raise OfficialServersUnavailable(f"there is no `{tool}`: {REMEDY}")
    question = "[process.versions.node, process.versions.modules, process.execPath]"
    answer = subprocess.run(["node", "-p", f"JSON.stringify({question})"], capture_output=True, text=True, check=True)
    version, abi, binary = json.loads(answer.stdout)
    if int(version.split(".")[0]) < OLDEST_NODE:
        raise OfficialServersUnavailable(f"node is {version}: {REMEDY}")
    return {"version": version, "abi": abi, "binary": binary}


def own_headers(node: dict[str, str]) -> dict[str, str]:
    """better-sqlite3 is compiled: against the headers beside `node` if they are its own, else npm fetches some."""
    prefix = Path(node["binary"]).resolve().parent.parent
    try:
        header = (prefix / "include" / "node" / "node_version.h").read_text()
    except OSError:
        header = ""
    own = f"#define NODE_MAJOR_VERSION {node['version'].split('.')[0]}\n" in header
    return {"npm_config_nodedir": str(prefix)} if own else {}


def npm_install(folder: Path, *options: str, environment: Mapping[str, str]) -> None:
    """`npm install` of the folder's package.json. Raises OfficialServersUnavailable with the end of what npm said."""
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-progress", *options]
    log = folder / "install.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environment},
        )  # fmt: skip
        try:
            code = process.wait(INSTALL_SECONDS)
        finally:
            process.kill()
            process.wait()
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise OfficialServersUnavailable(f"`{' '.join(command)}` failed with exit code {code}; {REMEDY}\n{tail}")


def try_compiled_module() -> None:
    tried = subprocess.run(
        ["node", "-e", "new (require('better-sqlite3'))(':memory:')"],
        cwd=FOLDER, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode != 0:
        raise OfficialServersUnavailable(f"better-sqlite3 was not compiled; {REMEDY}\n{tried.stderr}")


class OfficialProcess:
    """A script of `acceptance/` that runs: it tells its `facts` in one JSON line, and ends when nobody holds its stdin."""

    def __init__(self, command: list[str], log: Path) -> None:
        """Returns once the script serves; what it says on stderr goes to `log`. Raises OfficialServersUnavailable."""
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # one that hangs meets the test's own timeout
        if not line:
            code = self.process.wait(START_SECONDS)
            raise OfficialServersUnavailable(f"exit code {code}\n{log.read_text()[-4000:]}")
        self.facts: dict[str, Any] = json.loads(line)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(90)
        finally:
            self.process.kill()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()

    def end(self) -> None:
        """The end of a test: one that still runs must end well."""
        if self.process.poll() is None:
            assert self.stop() == 0


class OfficialNetwork(OfficialProcess):
    """A running official network; its methods are orders to it."""

    def __init__(self, command: list[str], log: Path) -> None:
        super().__init__(command, log)
        facts = self.facts
        self.plc: str = facts["plc"]
        self.pds: str = facts["pds"]
        self.labeler: str | None = facts["labeler"] and facts["labeler"]["url"]
        self.labeler_did: str | None = facts["labeler"] and facts["labeler"]["did"]
        self.versions: dict[str, str] = facts["versions"]
        self._control: str = facts["control"]

    def order(self, name: str, **arguments: Any) -> Any:
        """Carries out one of the orders of `official_network.mjs`, and returns when the servers have done it."""
        request = urllib.request.Request(f"{self._control}/{name}", json.dumps(arguments).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"order {name} {arguments}: {error.read().decode()}") from error

    def truth(self) -> dict[str, dict[str, Any]]:
        """DID → {active, status} and, of an active account, {handle, rev, commit, data, records: {path: CID}}."""
        return {account["did"]: account for account in self.order("truth")}

    def write(self, did: str, action: str, path: str, /, **value: Any) -> Any:
        """One commit with one operation. `path` is collection/rkey, or only a collection (a create's rkey is the PDS's).
        Returns {uri, cid}, of a delete None."""
        return self.order("write", did=did, writes=[operation(action, path, **value)])[0]

    def write_together(self, did: str, *operations: dict[str, Any]) -> Any:
        """One commit with all of them, in this order. Returns {uri, cid} of each, of a delete None."""
        return self.order("write", did=did, writes=list(operations), together=True)


def operation(action: str, path: str, /, **value: Any) -> dict[str, Any]:
    """`create`, `update` or `delete` of collection/rkey; the record's $type is the collection."""
    collection, _, rkey = path.partition("/")
    made: dict[str, Any] = {"action": action, "collection": collection}
    if rkey:
        made["rkey"] = rkey
    return made if action == "delete" else made | {"value": {"$type": collection, **value}}


def start_official_network(modules: Path, folder: Path, ozone: str | None, **options: int) -> OfficialNetwork:
    command = ["node", str(HERE / "official_network.mjs"), "--modules", str(modules), "--data", str(folder)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    if ozone is not None:
        command += ["--ozone", ozone]
    folder.mkdir(parents=True)
    return OfficialNetwork(command, folder / "network.log")


@pytest.fixture(scope="session")
def official_modules() -> Path:
    """The official packages, installed."""
    return install()


@pytest.fixture
def official_network(official_modules: Path, tmp_path: Path) -> Iterator[Callable[..., OfficialNetwork]]:
    """Factory: `official_network(ozone=POSTGRES_URL or None, accounts=8, posts=6, seed=1)`; all end with the test."""
    running: list[OfficialNetwork] = []

    def start(ozone: str | None = None, **options: int) -> OfficialNetwork:
        folder = tmp_path / f"official-{len(running)}"
        running.append(start_official_network(official_modules, folder, ozone, **options))
        return running[-1]

    yield start
    for network in running:
        network.end()


if __name__ == "__main__":
    install()
