"""Real processes: one that hangs is restarted and reports why; a failing step or coordinator stops none."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors.kafka.producer import LogProducer, Out, dead_letter
from connectors.runtime.watchdog import EXIT_HUNG, EXIT_STUCK
from local.children.supervisor import DRAIN_SECONDS, KILL_SECONDS, Child, Command, Supervisor
from local.commands import environment
from local.embedded.guarded_process import free_port
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings
from tests.support import ROOT, zygote
from tests.support.coordinator import Coordinator
from tests.support.flow_process import group_positions, wait_until

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
TIME = "2026-01-01T00:00:00.000Z"
WORK_SECONDS = 120.0
WATCHDOG_SECONDS = 4.0
STOP_SECONDS = 1.0
RUN = "from cli.main import main; main()"
FAIL_AND_HANG = """
import ctypes, pathlib, local.run
def hang():
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
def due(name):
    path = pathlib.Path({folder!r}, name)
    due = path.exists()
    path.unlink(missing_ok=True)
    return due
from flows.index.source import IndexPartition
poll = IndexPartition.poll
def failing_or_hanging(self):
    if due("fail"):
        raise ValueError("the shape of this is impossible")
    if due("hang"):
        hang()
    return poll(self)
IndexPartition.poll = failing_or_hanging
local.run.STOP_SECONDS = {stop_seconds}
"""


BLIND = """
from connectors.kafka.log import LogUnavailable
from connectors.kafka.offsets import Offsets
def parts(self, topics):
    raise LogUnavailable("list_topics: timed out")
Offsets.parts = parts
"""


class Run:
    """Processes as `up` starts them, and what it says of them."""

    def __init__(self, folder: Path) -> None:
        self.said: list[tuple[str, str]] = []
        self.folder = folder
        self.supervisor = Supervisor(folder / "logs", lambda who, what: self.said.append((who, what)))
        self.ports: dict[str, int] = {}

        self.forks: list[zygote.Forked] = []

    def start(self, kind: str, settings: Settings, patch: str) -> Child:
        """A process under the supervisor."""
        self.ports[kind] = free_port(list(self.ports.values()))
        argv = (sys.executable, "-P", "-c", patch + RUN, "run", kind)
        command = Command(kind, kind, argv, environment(settings, self.ports[kind]) | {"PYTHONPATH": str(ROOT)})
        return self.supervisor.add(command)

    def fork(self, kind: str, settings: Settings, patch: str = "") -> zygote.Forked:
        """A process of its own, not restarted; its output is in KIND.log."""
        self.ports[kind] = free_port(list(self.ports.values()))
        with (self.folder / f"{kind}.log").open("ab") as log:
            files = {"stdout": log.fileno(), "stderr": log.fileno()}
            env = os.environ | environment(settings, self.ports[kind])
            self.forks.append(zygote.spawn(["code", patch + RUN, "run", kind], env=env, **files))
        return self.forks[-1]

    def logged(self) -> str:
        """The end of each log, and what the supervisor has reported."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("logs/*.log")]
        return "\n".join([str(self.said), *(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)])

    def close(self) -> None:
        self.supervisor.kill()
        for fork in self.forks:
            fork.kill()
            fork.wait(KILL_SECONDS)

    def health(self, kind: str, path: str = "/readyz") -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[kind]}{path}", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as err:
            return err.code, json.load(err)
        except OSError:
            return 0, {}

    def until(self, condition: Callable[[], Any], seconds: float = WORK_SECONDS) -> Any:
        def ticking() -> Any:
            self.supervisor.tick()
            return condition()

        return wait_until(ticking, seconds, self.logged)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.close()


@pytest.fixture
def settings(settings_of: Callable[..., Settings], database: str) -> Settings:
    return settings_of(database=database, transport_session_seconds=6, epoch_seconds=0.2, log_format="json")


def test_a_flow_that_fails_or_hangs_is_restarted_and_its_cause_is_reported(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    """H1: one process fails, hangs in C code, and hangs in C code when SIGTERM arrives.

    - The last words of a failure are its cause; the engine's own lines come last, `run with RUST_BACKTRACE=full` among them.
    - A hang was unnoticed for 15 minutes, with /healthz 200: now 503, exit code 71, a restart, and the place in `up`.
    - A process that hangs obeys SIGTERM within its grace, with its stacks in the log; it was killed after 60 s.
    """
    fail, hang = tmp_path / "fail", tmp_path / "hang"
    fail.touch()
    watched = settings.replaced(watchdog_seconds=WATCHDOG_SECONDS, drain_seconds=0.0)
    child = run.start("index", watched, FAIL_AND_HANG.format(folder=str(tmp_path), stop_seconds=STOP_SECONDS))

    def restarting() -> list[str]:
        return [what for _, what in run.said if "restarting" in what]

    run.until(restarting)
    assert not fail.exists()  # the fault fired
    assert restarting()[0].endswith("last words: ValueError: the shape of this is impossible")
    run.until(lambda: run.health("index")[0] == 200)

    failed, hung = child.pid, child.restarts
    hang.touch()
    page = wait_until(
        lambda: (found := run.health("index", "/healthz"))[0] == 503 and found[1], WORK_SECONDS, run.logged
    )
    assert not hang.exists()  # the fault fired
    assert page["state"] == "hung"
    run.until(lambda: child.running and child.pid != failed)
    assert child.restarts == hung + 1
    _, what = restarting()
    assert f"ended with exit code {EXIT_HUNG} (it hung)" in what
    assert f"last words: no progress for {WATCHDOG_SECONDS:.0f} s: the flow's thread at" in what
    assert "(hang)" in what
    run.until(lambda: run.health("index")[0] == 200)

    hang.touch()
    wait_until(lambda: not hang.exists(), WORK_SECONDS, run.logged)  # the fault fired
    assert run.supervisor.drain(["index"]), "it was killed"
    child.record_end()
    assert child.exit_code == EXIT_STUCK
    assert "(hang)" in child.last_words or "most recent call first" in (run.folder / "logs" / "index.log").read_text()


def test_a_step_of_control_that_fails_for_ever_holds_up_no_other(run: Run, settings: Settings, database: str) -> None:
    """H1: the removal of obsolete rows failed each time, and dead letters, lag and the queue behind it never came."""
    process = run.fork("control", settings, BLIND)
    run.until(lambda: run.health("control")[0] == 200)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into sluice.repo (did, phase, active) values (%s, 'pending', true)", (DID,))
        letter = dead_letter("firehose https://relay.test", DeadReason.UNDECODABLE, "x", b"x", did=DID)
        LogProducer(settings).send([letter])
        run.until(lambda: db.execute("select count(*) from sluice.dead_letter").fetchone() == (1,))
        run.until(lambda: db.execute("select queued_at is not null from sluice.repo").fetchone() == (True,))
    # the fault fired; the page names one of the steps that ask for partitions
    page = run.until(lambda: (found := run.health("control")[1]).get("state") == "failing" and found)
    assert "list_topics: timed out" in page["why"]
    process.terminate()
    assert process.wait(DRAIN_SECONDS) == 0


def test_a_coordinator_that_stumbles_stops_no_flow(
    run: Run, settings: Settings, coordinator: Coordinator, database: str, log: str
) -> None:
    """H1: answers to OffsetCommit are swallowed, and index, backfill and control work on."""
    behind = settings.model_copy(
        update={"kafka_bootstrap": coordinator.address, "plc": "http://127.0.0.1:1", "allow_private_hosts": True}
    )
    processes = [run.fork(kind, behind) for kind in ("index", "backfill", "control")]
    run.until(lambda: all(run.health(kind)[0] == 200 for kind in run.ports))
    producer = LogProducer(settings)
    with psycopg.connect(database, autocommit=True) as db:

        def count(statement: str) -> int:
            row = db.execute(statement.encode()).fetchone()
            return int(row[0]) if row else 0

        def round_of(number: int) -> None:
            """One piece of work for each: a label, a dead letter, a repo to fetch."""
            did = f"did:plc:{number:024d}"
            label = wire.LabelEvent(seq=number, src="did:plc:labeler", uri=did, val=f"v{number}", cts=TIME)
            db.execute(
                "insert into sluice.repo (did, phase, active) values (%s, 'pending', true) on conflict do nothing",
                (did,),
            )
            producer.send([
                Out("label_live", did, wire.encode(label)),
                dead_letter("firehose https://relay.test", DeadReason.UNDECODABLE, "x", b"x", did=did),
                Out("repo_backfill", did, wire.encode(wire.RepoTask(did=did, attempt=0, reason="listed"))),
            ])  # fmt: skip
            run.until(lambda: count("select count(*) from sluice.label") >= number)
            run.until(lambda: count("select count(*) from sluice.dead_letter") >= number)
            run.until(lambda: count(f"select attempt from sluice.repo where did = '{did}'") >= 1)

        round_of(1)
        coordinator.swallowing = True
        for number in range(2, 6):
            round_of(number)
        run.until(lambda: coordinator.swallowed >= 3)  # the fault fired
        round_of(6)
        coordinator.swallowing = False
        round_of(7)

        def caught_up() -> bool:
            """The groups' offsets in the broker have followed."""
            groups = (("index", "label_live"), ("dead-letters", "dead_letter"), ("backfill", "repo_backfill"))
            return all(
                sum(group_positions(log, settings.group(group), settings.topic(topic)).values()) >= 7
                for group, topic in groups
            )

        run.until(caught_up)
    assert [process.poll() for process in processes] == [None] * 3
    for process in processes:
        process.terminate()
    assert [process.wait(DRAIN_SECONDS) for process in processes] == [0] * 3
