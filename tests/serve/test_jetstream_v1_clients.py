"""Published clients of Jetstream v1, unmodified: `@atcute/jetstream`, which checks every field, and `@skyware/jetstream`."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.kafka.producer import Out
from connectors.runtime import metrics
from protocol.syntax import tid_from_micros
from tests.serve.streams import CID, Served, account, commit, did, identity, op
from tests.support import ROOT
from tests.support.flow_process import wait_until
from tests.support.official.servers import install_once, node_facts, npm_install

HERE = ROOT / "tests" / "serve" / "jetstream_clients"
FOLDER = ROOT / ".sluice" / "jetstream-clients"
A = did(1)
POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"

pytestmark = pytest.mark.parametrize("library", ["@atcute/jetstream", "@skyware/jetstream"])


@pytest.fixture(scope="module")
def modules() -> Path:
    """The `node_modules` folder with the clients, as the lock file has them."""
    lock = HERE / "package-lock.json"

    def install() -> None:
        shutil.copy(lock, FOLDER)
        npm_install(FOLDER, "--ignore-scripts", environment={})

    return install_once(FOLDER, HERE / "package.json", lock.read_text() + node_facts()["version"], install)


class NpmClient:
    """A client in a process of its own. `events`: what it gave so far."""

    def __init__(self, modules: Path, library: str, port: int, **options: Any) -> None:
        url = f"ws://127.0.0.1:{port}/subscribe"
        command = ["node", HERE / "client.mjs", modules, library, url, json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.events: list[Any] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.events.append(json.loads(line))

    def update(self, **options: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(options) + "\n")
        self._process.stdin.flush()

    def commits(self) -> list[Any]:
        assert [event for event in self.events if "error" in event] == []
        return [event["commit"] for event in list(self.events) if event["kind"] == "commit"]

    def rkeys(self) -> list[str]:
        return [one["rkey"] for one in self.commits()]

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._thread.join(10)


@pytest.fixture
def client_of(modules: Path, library: str) -> Iterator[Callable[..., NpmClient]]:
    """`client_of(port, wantedCollections=…)`; it is connected when this returns."""
    running: list[NpmClient] = []

    def start(port: int, **options: Any) -> NpmClient:
        before = metrics.SERVE_CLIENTS._value.get()
        running.append(NpmClient(modules, library, port, **options))
        wait_until(lambda: metrics.SERVE_CLIENTS._value.get() > before)
        return running[-1]

    yield start
    for client in running:
        client.close()


def rev(number: int) -> str:
    return tid_from_micros(1_790_000_000_000_000 + number)


def posts(first: int, end: int) -> list[Out]:
    return [commit(A, rev(number), op(f"post{number}", POST)) for number in range(first, end)]


def names(first: int, end: int) -> list[str]:
    return [f"post{number}" for number in range(first, end)]


def test_it_gets_the_collections_that_it_wants_and_all_accounts(
    served: Served, client_of: Callable[..., NpmClient]
) -> None:
    """V1: every kind of event, with all fields."""
    client = client_of(served.port, wantedCollections=[POST])
    updated = commit(A, rev(101), op("post1", POST, "update", "again"), op("like1", LIKE), op("post2", POST, "delete"))
    served.write(*posts(0, 30), updated, identity(A, "a.test"), account(A, active=False, status="deactivated"))
    wait_until(lambda: len(client.events) >= 34)
    commits = client.commits()
    assert client.rkeys() == [*names(0, 30), "post1", "post2"]
    assert [one["operation"] for one in commits] == ["create"] * 30 + ["update", "delete"]
    assert commits[0]["record"] == {"$type": POST, "text": "hello", "createdAt": "2026-11-30T08:00:00.000Z"}
    assert [one.get("cid") for one in commits[29:]] == [CID, CID, None]
    assert (commits[0]["rev"], commits[30]["record"]["text"], "record" in commits[31]) == (rev(0), "again", False)
    known, hidden = client.events[32:]
    assert (known["did"], known["identity"]["handle"]) == (A, "a.test")
    assert (hidden["did"], hidden["account"]["active"], hidden["account"]["status"]) == (A, False, "deactivated")
    times = [event["time_us"] for event in client.events]
    assert times == sorted(times)


def test_it_begins_at_a_cursor_and_replaces_its_filters(served: Served, client_of: Callable[..., NpmClient]) -> None:
    """V1: the event of the cursor comes again, and a filter that was sent on the connection holds."""
    first = client_of(served.port, wantedCollections=[POST])
    served.write(*posts(0, 30), commit(A, rev(100), op("like", LIKE)))
    wait_until(lambda: len(first.events) >= 30)
    second = client_of(served.port, wantedCollections=["app.bsky.feed.*"], cursor=first.events[10]["time_us"])
    wait_until(lambda: len(second.events) >= 21)
    assert second.rkeys() == [*names(10, 30), "like"]
    first.update(wantedCollections=[LIKE])

    def like_came() -> bool:
        served.write(commit(A, rev(101), op("like", LIKE)))
        return "like" in first.rkeys()

    wait_until(like_came)
    served.write(*posts(30, 40), commit(A, rev(200), op("last", LIKE)))
    wait_until(lambda: "last" in first.rkeys())
    assert set(first.rkeys()[30:]) == {"like", "last"}


def test_it_reconnects_with_its_cursor_and_nothing_is_lost(served: Served, client_of: Callable[..., NpmClient]) -> None:
    """V1: the server ends, events are written meanwhile, another one takes its address with an empty memory."""
    client = client_of(served.port, wantedCollections=[POST])
    served.write(*posts(0, 30), commit(A, rev(100), op("like", LIKE)), identity(A, "a.test"))
    wait_until(lambda: len(client.events) >= 31)
    served.close()
    served.write(*posts(30, 40), commit(A, rev(101), op("like", LIKE)))
    with Served(served.settings, served.port) as again:
        again.write(*posts(40, 50))
        wait_until(lambda: "post49" in client.rkeys())
        assert client.rkeys() == names(0, 50)
        assert [event["kind"] for event in client.events].count("identity") == 2, "the event of the cursor comes again"
