"""`sluice up` as an operator starts it, on a data folder of its own, and what its tables say beside the official truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from local.embedded.embedded_database import EmbeddedDatabase
from protocol.encoding.record_json import body_cid
from schemas.settings import Settings, variables
from tests.support.official.servers import ROOT, OfficialNetwork

SLUICE = Path(sys.executable).with_name("sluice")
SYNC_SECONDS = 180
CATCH_UP_SECONDS = 120
STOP_SECONDS = 120
Truth = dict[str, dict[str, Any]]


class Mirror:
    """One mirror of one official network. `folder` is its --data-dir, with log and database embedded."""

    def __init__(self, folder: Path, network: OfficialNetwork, **settings: object) -> None:
        self.folder = folder
        self.network = network
        self._command = [str(SLUICE), "up", "--relay", network.pds, "--plc", network.plc, "--data-dir", str(folder)]
        if network.labeler:
            self._command += ["--labeler", network.labeler]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
        given = variables(Settings(allow_private_hosts=True, **settings))
        self._environment = {**inherited, **given}
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder.with_suffix(".log")

    def sync(self) -> dict[str, Any]:
        """`--until-synced`, which has to exit 0 with one JSON line: the totals."""
        with self.log.open("a") as log:
            run = subprocess.run(
                [*self._command, "--until-synced"],
                cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True,
                timeout=SYNC_SECONDS, check=False,
            )  # fmt: skip
        assert run.returncode == 0, self.last_words()
        assert run.stdout.count("\n") == 1, run.stdout
        return json.loads(run.stdout)

    @contextmanager
    def running(self) -> Iterator[None]:
        """`sluice up` in the background. At the end SIGTERM, upon which it exits 0 and leaves no process."""
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=subprocess.DEVNULL, stderr=log
            )
        try:
            until(lambda: (self.folder / "processes.json").exists() or self._process.poll() is not None, SYNC_SECONDS)
            assert self._process.poll() is None, self.last_words()
            yield
            assert self._process.poll() is None, self.last_words()
            family = psutil.Process(self._process.pid).children(recursive=True)
            assert {"java", "postgres"} <= {name_of(process) for process in family}
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(STOP_SECONDS) == 0, self.last_words()
            _, left = psutil.wait_procs(family, timeout=30)
            assert not left, f"`sluice up` left {left}"
        finally:
            if self._process.poll() is None:
                self._process.kill()  # its processes end with it
                self._process.wait()
            self._process = None

    def database_url(self) -> str:
        """Of the tables, while the mirror runs."""
        return str(json.loads((self.folder / "processes.json").read_text())["database"])

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection to the tables, while the mirror runs and when it does not."""
        if self._process is not None:
            with psycopg.connect(self.database_url()) as connection:
                yield connection
        else:
            with EmbeddedDatabase(self.folder / "database") as server, psycopg.connect(server.url) as connection:
                yield connection

    def assert_equals(self, truth: Truth) -> None:
        with self.database() as connection:
            found = differences(truth, connection)
        assert not found, "\n".join([*found, self.last_words()])

    def await_equal(self, truth: Truth) -> float:
        """Waits until the tables equal the truth; seconds that it took."""
        found: list[str] = []

        def equal() -> bool:
            with self.database() as connection:
                found[:] = differences(truth, connection)
            return not found

        began = time.monotonic()
        assert until(equal, CATCH_UP_SECONDS), "\n".join([*found, self.last_words()])
        return time.monotonic() - began

    def last_words(self) -> str:
        return f"--- the end of {self.log.name}\n" + "\n".join(self.log.read_text().splitlines()[-40:])


def name_of(process: psutil.Process) -> str:
    """'' of one that has ended: sessions of PostgreSQL come and go."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Polls twice a second; False when the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.5)
    return true()


def repo_rows(connection: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    """DID → the columns of `sluice.repo` that the network knows too."""
    columns = ("did", "phase", "active", "status", "handle", "rev", "commit", "data")
    rows = connection.execute(f"SELECT {', '.join(columns)} FROM sluice.repo").fetchall()
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def record_rows(connection: psycopg.Connection[Any]) -> dict[str, dict[str, str]]:
    """DID → path → CID, of all of `sluice.record`; every stored body hashes to its row's CID."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    query = "SELECT did, collection, rkey, cid, json::text, raw FROM sluice.record"
    for did, collection, rkey, cid, json_text, raw in connection.execute(query):
        assert json_text is not None, f"{did}/{collection}/{rkey} has no body"
        assert body_cid(json_text.encode(), raw) == cid, f"{did}/{collection}/{rkey} does not hash to {cid}"
        found[did][f"{collection}/{rkey}"] = cid
    return found


def differences(truth: Truth, connection: psycopg.Connection[Any]) -> list[str]:
    """What tells the tables from the truth, one line each. Of hidden accounts it looks at the status only."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    repos, records = repo_rows(connection), record_rows(connection)
    found = [f"{did}: a row of nobody, with {len(records[did])} records" for did in records.keys() - truth.keys()]
    for did, account in truth.items():
        row = repos.get(did)
        if row is None:
            found.append(f"{did}: no row")
            continue
        compared = ("handle", "rev", "commit", "data") if account["active"] else ()
        wanted = {name: account[name] for name in ("active", "status", *compared)}
        if account["active"]:
            wanted["phase"] = "sync"
            missing = account["records"].items() - records[did].items()
            wrong = records[did].items() - account["records"].items()
            found += [f"{did}: lacks {path} {cid}" for path, cid in sorted(missing)]
            found += [f"{did}: must not hold {path} {cid}" for path, cid in sorted(wrong)]
        found += [f"{did}: {name} is {row[name]}, not {value}" for name, value in wanted.items() if row[name] != value]
    return found
