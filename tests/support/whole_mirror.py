"""pytest plugin: `mirror(simulation, …)` → a Mirror: the real processes over a simulated network, as a user runs them.

`Mirror.up()` runs `sluice up` in a session of its own; `Mirror.run(kind)` one `sluice run` process, for tests that kill one
for good. Whatever a test leaves running ends with it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from control.process_status import Process as Listed
from control.process_status import ProcessStatus, Registry, check_process, check_processes, registered
from local.embedded.guarded_process import free_port
from schemas.flows import PROCESSES
from schemas.settings import Settings, variables
from tests.support import ROOT, zygote
from tests.support.mirror_truth import difference
from tests.support.simulation import Simulation

MARK = "MIRROR_OF_TEST"  # in the environment of every process of a mirror, so that what is left can be found

# Times of a test, not of production: everything that production does within minutes happens within seconds.
SHORT = {
    "allow_private_hosts": True,
    "kafka_partitions": 8,
    "kafka_replication": 1,
    "log_format": "json",
    "epoch_seconds": 0.2,
    "transport_session_seconds": 6.0,
    "retry_first_seconds": 0.3,
    "retry_max_seconds": 2.0,
    "rate_limit_pause_seconds": 1.0,
    "list_page_size": 200,
    "list_retry_seconds": 0.1,
    "list_recheck_seconds": 2.0,
    "list_relist_seconds": 6.0,
    "gap_relist_seconds": 3.0,
    "listed_rev_grace_seconds": 2.0,
    "stream_silence_seconds": 3.0,
    "control_interval_seconds": 0.3,
    "requeue_after_seconds": 5.0,
    "lease_seconds": 6.0,
    "fetch_idle_seconds": 2.0,
    "fetch_total_seconds": 30.0,
    "stale_seconds": 10.0,
    "resyncs_per_repo_hour": 1000,
    "handle_retry_seconds": 2.0,
    "handle_recheck_seconds": 20.0,
    "handle_checks_per_second": 200.0,
    "identity_cache_seconds": 60.0,
    "backfill_concurrency": 20,
    "pds_concurrency": 20,
}


class Mirror:
    """A mirror of one simulated network in one folder. Settings are those of `SHORT`, then the test's."""

    def __init__(self, folder: Path, simulation: Simulation | None, **settings: Any) -> None:
        self.folder = folder
        self.simulation = simulation
        self.data_dir = folder / "data"
        self.mark = secrets.token_hex(8)
        given: dict[str, Any] = {**SHORT, "data_dir": self.data_dir}
        if simulation is not None:
            given |= {"relays": simulation.relays, "labelers": simulation.labelers, "plc": simulation.plc}
            given["handle_dns"] = simulation.dns
        self.settings = given | settings
        self.leader: subprocess.Popen[bytes] | None = None
        self.single: list[SingleProcess] = []

    # --- running

    def environment(self, **settings: Any) -> dict[str, str]:
        """Environment of a process of this mirror."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_") or k == "SLUICE_CACHE_DIR"}
        return kept | variables(Settings(**self.settings | settings)) | {MARK: self.mark, "COLUMNS": "200"}

    def up(self, *arguments: str, **settings: Any) -> None:
        """`sluice up` with these arguments, in a session of its own. Its output goes to up.out and up.err."""
        assert self.leader is None or self.leader.poll() is not None
        out, err = (self.folder / "up.out").open("ab"), (self.folder / "up.err").open("ab")
        with out, err:
            command = [sys.executable, "-m", "cli", "up", *arguments]
            self.leader = subprocess.Popen(
                command, stdout=out, stderr=err, cwd=ROOT, env=self.environment(**settings), start_new_session=True
            )

    def run(self, kind: str, *, code: Path = ROOT, **settings: Any) -> SingleProcess:
        """`sluice run KIND` of the release in `code`, once; it is not started again."""
        process = SingleProcess(self, kind, len(self.single), settings, code)
        self.single.append(process)
        return process

    def interrupt(self, seconds: float = 120) -> int:
        """Ctrl-C: SIGINT to the process group of `up`. Its exit code."""
        assert self.leader is not None
        os.killpg(self.leader.pid, signal.SIGINT)
        return self.leader.wait(seconds)

    def close(self) -> None:
        """End what still runs, and make sure that nothing is left."""
        for process in self.single:
            process.kill()
        if self.leader is not None and self.leader.poll() is None:
            os.killpg(self.leader.pid, signal.SIGTERM)
            try:
                self.leader.wait(120)
            except subprocess.TimeoutExpired:
                self.leader.kill()
                self.leader.wait()
        wait_for(lambda: not self.left_behind(), 60, lambda: f"processes left behind: {self.left_behind()}")

    def left_behind(self) -> list[str]:
        """Processes that carry this mirror's mark or its folder, `pid command`."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(MARK) == self.mark or any(str(self.folder) in word for word in words):
                    found.append(f"{process.pid} {' '.join(words)[:120]}")
            except psutil.Error:
                continue
        return found

    # --- looking

    @property
    def registry(self) -> Registry:
        """processes.json of the running `up`."""
        found = registered(self.data_dir)
        assert found is not None, f"`up` does not run: {self.last_lines()}"
        return found

    def started(self, seconds: float = 120) -> Registry:
        """Wait until `up` has registered its processes."""
        return wait_for(lambda: self.alive() and registered(self.data_dir), seconds, self.last_lines)

    def alive(self) -> bool:
        """True while `up` runs; fails with its words when it has ended."""
        if self.leader is not None and self.leader.poll() is not None:
            raise AssertionError(f"`up` ended with {self.leader.returncode}: {self.last_lines()}")
        return True

    def pid(self, name: str) -> int:
        """Pid of a process of `up`, by name (`index`, `backfill-2`, `kafka`)."""
        return next((process.pid for process in self.registry.processes if process.name == name), 0)

    def sightings(self, *, with_metrics: bool = True) -> dict[str, ProcessStatus]:
        """Health and metrics of every process of `up`, by name."""
        return {seen.name: seen for seen in check_processes(self.registry.processes, PROCESSES if with_metrics else ())}

    def count(self, name: str, metric: str) -> float:
        """Sum of a metric of a process of `up`, by name; waits until it answers. 0 where it has counted nothing."""

        def answered() -> ProcessStatus | None:
            self.alive()
            process = next((process for process in self.registry.processes if process.name == name), None)
            return process and answer_of(process)

        seen: ProcessStatus = wait_for(answered, 60, lambda: f"{name} does not answer: {self.last_lines()}")
        return seen.total(metric) or 0.0

    @property
    def database(self) -> str:
        """URL of the mirror's database, given or embedded."""
        return self.settings.get("database") or self.registry.database

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of one statement."""
        with psycopg.connect(self.database, autocommit=True) as db:
            cursor = db.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def phases(self) -> dict[str, int]:
        """Phase → number of repos; empty while there is no such table, or no database."""
        try:
            return dict(self.query("select phase, count(*) from sluice.repo group by phase"))
        except (psycopg.errors.UndefinedTable, psycopg.OperationalError):
            return {}

    def cli(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of `sluice` over this mirror's folder."""
        return zygote.run(["sluice", *arguments], env=self.environment(), timeout=seconds)

    def status(self) -> dict[str, Any]:
        """`sluice status --json`."""
        said = self.cli("status", "--json")
        assert said.returncode == 0, said.stderr
        page: dict[str, Any] = json.loads(said.stdout)
        return page

    def last_lines(self, count: int = 25) -> str:
        """The end of what `up` and the single processes have said."""
        files = [self.folder / "up.err", *(process.log_file for process in self.single)]
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-count:])
            for file in files
            if file.exists()
        )

    # --- waiting

    def quiesce(self) -> None:
        """Faults off, writer stopped, everything sent. Lost commits stay lost: the mirror has to find them."""
        assert self.simulation is not None
        self.simulation.set_faults(clear=True)
        self.simulation.quiesce(heal=False)

    def await_truth(self, seconds: float = 90) -> None:
        """Wait until the tables equal the network, and still do so a moment later."""
        assert self.simulation is not None
        simulation, again = self.simulation, False
        deadline = time.monotonic() + seconds
        while True:
            found = self._difference(simulation)
            if not found and again:
                return
            again = not found
            if time.monotonic() > deadline and found:
                found += difference(self.database, simulation)
                raise AssertionError("\n".join(["not the network's state:", *found, self.last_lines()]))
            time.sleep(1.0)

    def _difference(self, simulation: Simulation) -> list[str]:
        try:
            moving = self.query("select count(*) from sluice.repo where phase in ('pending', 'backfill')")[0][0]
            if moving:
                return [f"{moving} repos are being fetched"]
            return difference(self.database, simulation)
        except (psycopg.errors.UndefinedTable, psycopg.OperationalError) as err:
            return [f"the database does not answer: {err}"]


class SingleProcess:
    """`sluice run KIND` on its own port, in a session of its own."""

    def __init__(self, mirror: Mirror, kind: str, number: int, settings: dict[str, Any], code: Path) -> None:
        self.kind = kind
        self.port = free_port()
        self.log_file = mirror.folder / f"{number}-{kind}.log"
        with self.log_file.open("ab") as out:
            environment = mirror.environment(http_port=self.port, **settings)
            self.process: subprocess.Popen[bytes] | zygote.Forked
            if code == ROOT:
                files = {"stdout": out.fileno(), "stderr": out.fileno()}
                self.process = zygote.spawn(["sluice", "run", kind], env=environment, **files)
            else:
                command = [sys.executable, "-m", "cli", "run", kind]
                self.process = subprocess.Popen(
                    command, stdout=out, stderr=out, cwd=code, env=environment, start_new_session=True
                )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self.running:
            self.process.kill()
        self.process.wait(60)

    def terminate(self, seconds: float = 60) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)

    def _listed(self) -> Listed:
        return Listed(self.kind, self.kind, self.process.pid, self.port)

    def look(self) -> ProcessStatus:
        """What it says of itself now."""
        return check_process(self._listed(), with_metrics=True)

    def metric(self, name: str) -> float:
        """Sum of a metric; 0 also where the process does not answer yet, or not in time: for a wait."""
        return self.look().total(name) or 0.0

    def count(self, name: str) -> float:
        """The same, of a process that has to answer: waits until it does."""
        seen: ProcessStatus = wait_for(
            lambda: self.running and answer_of(self._listed()), 60, lambda: f"{self.kind} does not answer"
        )
        return seen.total(name) or 0.0


def answer_of(process: Listed) -> ProcessStatus | None:
    """State and metrics; None where it did not answer in time."""
    seen = check_process(process, with_metrics=True)
    return seen if seen.metrics else None


def prefix() -> str:
    """A prefix of topics and groups on the shared broker that no other test has."""
    return f"m{secrets.token_hex(4)}-"


def wait_for(condition: Callable[[], Any], seconds: float, what: Callable[[], str] | str = "") -> Any:
    """Poll until the condition holds; its value. Fails after `seconds` with `what`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.2)


@contextmanager
def mirrors(parent: Path) -> Iterator[Callable[..., Mirror]]:
    """Factory: `mirror(simulation, kafka_bootstrap=…, database=…, **settings) -> Mirror`; all are ended at the end."""
    made: list[Mirror] = []

    def factory(simulation: Simulation | None, **settings: Any) -> Mirror:
        folder = parent / f"mirror-{len(made)}"
        folder.mkdir()
        made.append(Mirror(folder, simulation, **settings))
        closing.callback(made[-1].close)  # each, also when another does not end well
        return made[-1]

    with ExitStack() as closing:
        yield factory


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Callable[..., Mirror]]:
    """The factory of `mirrors`, for one test.

    Ask for it after `simulator`, `log` and `database`: pytest ends fixtures in reverse, and these have to outlive it.
    """
    with mirrors(tmp_path) as factory:
        yield factory
