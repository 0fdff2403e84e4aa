"""pytest plugin: the official AppView over a database that anybody filled, and its own indexer, in two versions.

`official_appview(version, database, network, index=…)` starts one beside an official network (`servers.py`). The
newer version needs a newer Node.js than the other servers; npm installs both into `.sluice/official-newest`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingUDPServer
from typing import Any

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import psycopg
import pytest

from tests.support.official.servers import (
    HERE,
    ROOT,
    START_SECONDS,
    OfficialNetwork,
    OfficialProcess,
    OfficialServersUnavailable,
    install,
    install_once,
)
from tests.support.official.servers import npm_install as npm
from tests.support.postgres import fresh_database

SERVICE = "did:web:appview.test"
VERSIONS = ("0.0.221", "0.0.280")
NEWEST = ROOT / ".sluice" / "official-newest"
SCRIPT = HERE / "official_appview.mjs"
INDEX_SECONDS = 90


@dataclass(frozen=True, slots=True)
class Release:
    """One version of the AppView: its packages, and the Node.js that runs it."""

    modules: Path
    node: str


def release(version: str) -> Release:
    """Installs what is missing. Raises OfficialServersUnavailable."""
    if version == VERSIONS[0]:
        return Release(install(), "node")
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    manifest = HERE / "newest" / "package.json"
    modules = install_once(
        NEWEST, manifest, machine,
        lambda: npm(NEWEST, "--no-package-lock", "--ignore-scripts", environment={}),
    )  # fmt: skip
    node = modules / f"node-linux-{machine}" / "bin" / "node"
    if not node.exists():
        raise OfficialServersUnavailable(f"npm has no Node.js 22 for Linux on {machine}")
    return Release(modules, str(node))


class AppView:
    """Where an AppView answers; the same questions to two of them tell their databases apart."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, method: str, token: str | None = None, **parameters: Any) -> tuple[int, Any]:
        """Status and answer of one XRPC query."""
        url = f"{self.url}/xrpc/{method}?{urllib.parse.urlencode(parameters, doseq=True)}"
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")


class OfficialAppView(OfficialProcess):
    """A running process of one version. It serves `answers`, over the database that it was started with."""

    def __init__(self, command: list[str], log: Path) -> None:
        super().__init__(command, log)
        self.answers = AppView(self.facts["url"])
        self.version: str = self.facts["version"]
        self._control: str = self.facts["control"]

    @contextmanager
    def answering_from(self, database: str) -> Iterator[AppView]:
        """A second AppView in the same process, over `database`: its code is loaded and compiled already."""
        url = self._order(f"open/{urllib.parse.quote(database, safe='')}")["url"]
        try:
            yield AppView(url)
        finally:
            self._order("close")

    def _order(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._control}/{path}", timeout=START_SECONDS) as answer:
            return json.load(answer)

    def await_indexed(self, seq: int) -> list[str]:
        """Until its own indexer has stored every event up to `seq`; what it refused, one line each."""
        deadline = time.monotonic() + INDEX_SECONDS
        while True:
            stands = self._order("indexed")
            if stands["seq"] >= seq:
                return list(stands["errors"])
            assert time.monotonic() < deadline, f"the official indexer stands at {stands}, not at {seq}"
            time.sleep(0.1)


def start_official_appview(
    chosen: Release, database: str, network: OfficialNetwork, log: Path, index: bool
) -> OfficialAppView:
    command = [
        chosen.node, str(SCRIPT), "--modules", str(chosen.modules), "--database", database,
        "--plc", network.plc, "--pds", network.pds,
    ]  # fmt: skip
    if network.labeler_did:
        command += ["--labeler", network.labeler_did]
    if index:
        command += ["--index", network.pds.replace("http", "ws", 1)]
    return OfficialAppView(command, log)


def make_official_tables(chosen: Release, database: str) -> None:
    """The schema `bsky`, empty, by the package's own migrations."""
    command = [chosen.node, str(SCRIPT), "--modules", str(chosen.modules), "--database", database, "--migrate-only"]
    made = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_SECONDS, check=False
    )
    if made.returncode != 0:
        raise OfficialServersUnavailable(f"exit code {made.returncode}\n{made.stderr[-4000:]}")


class HandleServer:
    """DNS on loopback: the TXT records of handles under .test, which their PDS knows and no other DNS does."""

    def __init__(self, network: OfficialNetwork) -> None:
        class Answers(BaseRequestHandler):
            def handle(self) -> None:
                data, sock = self.request
                try:
                    query = dns.message.from_wire(data)
                except dns.exception.DNSException:
                    return
                sock.sendto(answered(query, network.pds).to_wire(), self.client_address)

        self._server = ThreadingUDPServer(("127.0.0.1", 0), Answers)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = "{}:{}".format(*self._server.server_address)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def answered(query: dns.message.Message, pds: str) -> dns.message.Message:
    response = dns.message.make_response(query)
    question = query.question[0]
    handle = question.name.to_text(omit_final_dot=True).lower().removeprefix("_atproto.")
    url = f"{pds}/xrpc/com.atproto.identity.resolveHandle?handle={urllib.parse.quote(handle)}"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            did = json.load(answer)["did"]
    except urllib.error.HTTPError:
        response.set_rcode(dns.rcode.NXDOMAIN)
        return response
    if question.rdtype == dns.rdatatype.TXT:
        response.answer.append(dns.rrset.from_text(question.name, 1, "IN", "TXT", f'"did={did}"'))
    return response


@pytest.fixture
def official_appview(blank_databases: Callable[[], str], tmp_path: Path) -> Iterator[Callable[..., OfficialAppView]]:
    """Factory: `official_appview(version, database, network, index=False)`; all end before their databases do."""
    running: list[OfficialAppView] = []

    def start(version: str, database: str, network: OfficialNetwork, *, index: bool = False) -> OfficialAppView:
        log = tmp_path / f"appview-{len(running)}.log"
        running.append(start_official_appview(release(version), database, network, log, index))
        return running[-1]

    yield start
    for appview in running:
        appview.end()


@pytest.fixture
def blank_databases(postgres: str) -> Iterator[Callable[[], str]]:
    """Factory of fresh, empty databases; dropped after the test."""
    with ExitStack() as made:
        yield lambda: made.enter_context(fresh_database(postgres))


@pytest.fixture(scope="session")
def official_tables(postgres: str) -> Iterator[Callable[[str], str]]:
    """`official_tables(version)`: URL of a database with that version's own tables, empty, one for the session."""
    with ExitStack() as made:

        @cache
        def make(version: str) -> str:
            database = made.enter_context(fresh_database(postgres))
            make_official_tables(release(version), database)
            return database

        yield make


@pytest.fixture
def handle_server() -> Iterator[Callable[[OfficialNetwork], HandleServer]]:
    """Factory: `handle_server(network)`; its `address` is for SLUICE_HANDLE_DNS."""
    running: list[HandleServer] = []

    def start(network: OfficialNetwork) -> HandleServer:
        running.append(HandleServer(network))
        return running[-1]

    yield start
    for server in running:
        server.stop()


def bsky(database: str) -> psycopg.Connection[Any]:
    """A connection that looks into the schema `bsky`."""
    return psycopg.connect(database, options="-c search_path=bsky,public")


if __name__ == "__main__":
    for wanted in VERSIONS:
        release(wanted)
