"""Real processes under the supervisor of `sluice up`: one that hangs comes back and says why; a coordinator that stumbles
stops none."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors.kafka.producer import LogProducer, Out, dead_letter
from connectors.runtime.watchdog import EXIT_HUNG, EXIT_STUCK
from local.commands import environment
from local.embedded.guarded_process import free_port
from local.supervisor import DRAIN_SECONDS, Child, Command, Supervisor
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings
from tests.support import ROOT
from tests.support.coordinator import Coordinator
from tests.support.flow_process import group_positions, wait_until

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
TIME = "2026-01-01T00:00:00.000Z"
START_SECONDS = 120.0
WORK_SECONDS = 60.0  # H1: within a minute every process works on
RUN = "from cli.main import main; main()"
HANG = """
import ctypes, pathlib
def hang():
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
from flows.index.source import IndexPartition
poll = IndexPartition.poll
def hanging(self):
    if pathlib.Path({flag!r}).exists():
        pathlib.Path({flag!r}).unlink()
        hang()
    return poll(self)
IndexPartition.poll = hanging
"""
FAIL = """
from flows.index.source import IndexPartition
def failing(self):
    raise ValueError("the shape of this is impossible")
IndexPartition.poll = failing
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

    def start(self, kind: str, settings: Settings, patch: str = "") -> Child:
        self.ports[kind] = free_port(list(self.ports.values()))
        argv = (sys.executable, "-P", "-c", textwrap.dedent(patch) + RUN, "run", kind)
        command = Command(kind, kind, argv, environment(settings, self.ports[kind]) | {"PYTHONPATH": str(ROOT)})
        return self.supervisor.add(command)

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

        return wait_until(ticking, seconds, lambda: f"{self.said}")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.supervisor.kill()


@pytest.fixture
def settings(settings_of: Callable[..., Settings], database: str) -> Settings:
    return settings_of(database=database, transport_session_seconds=6, epoch_seconds=0.2, log_format="json")


def test_a_flow_that_hangs_in_c_is_started_again_and_says_where(run: Run, settings: Settings, tmp_path: Path) -> None:
    """H1: unnoticed for 15 minutes, with /healthz 200; now 503, exit 71, restart, and the cause in `up`."""
    flag = tmp_path / "hang"
    watched = settings.replaced(watchdog_seconds=3.0)
    child = run.start("index", watched, HANG.format(flag=str(flag)))
    run.until(lambda: run.health("index")[0] == 200, START_SECONDS)
    first = child.pid
    flag.touch()
    page = wait_until(lambda: (found := run.health("index", "/healthz"))[0] == 503 and found[1])
    assert not flag.exists()  # the fault fired
    assert page["state"] == "hung"
    run.until(lambda: child.running and child.pid != first)
    ((_, what),) = [(who, what) for who, what in run.said if "exit code" in what and "restarting" in what]
    assert f"ended with exit code {EXIT_HUNG} (it hung)" in what
    assert "last words: no progress for 3 s: the flow's thread at" in what
    assert "(hang)" in what
    run.until(lambda: run.health("index")[0] == 200, START_SECONDS)
    assert run.supervisor.drain(["index"])
    assert child.exit_code in (None, 0)


def test_a_flow_that_hangs_in_c_obeys_sigterm_within_its_grace(run: Run, settings: Settings, tmp_path: Path) -> None:
    """H1: it was killed after 60 s; now it ends itself, with its stacks in the log."""
    flag = tmp_path / "hang"
    brief = settings.replaced(drain_seconds=0.0)
    child = run.start("index", brief, HANG.format(flag=str(flag)) + "import local.run\nlocal.run.STOP_SECONDS = 2.0\n")
    run.until(lambda: run.health("index")[0] == 200, START_SECONDS)
    flag.touch()
    wait_until(lambda: not flag.exists())  # the fault fired
    began = time.monotonic()
    child.signal(signal.SIGTERM)
    assert child.wait(DRAIN_SECONDS)
    assert time.monotonic() - began < DRAIN_SECONDS
    run.supervisor.tick()
    assert child.exit_code == EXIT_STUCK
    assert "(hang)" in child.last_words or "most recent call first" in (run.folder / "logs" / "index.log").read_text()


def test_the_last_words_of_a_flow_are_its_cause(run: Run, settings: Settings) -> None:
    """H1: the engine's own lines come last, and `up` printed `run with RUST_BACKTRACE=full`."""
    run.start("index", settings, FAIL)
    what = run.until(lambda: next((what for _, what in run.said if "restarting" in what), None), START_SECONDS)
    assert what.endswith("last words: ValueError: the shape of this is impossible")


def test_a_step_of_control_that_fails_for_ever_holds_up_no_other(run: Run, settings: Settings, database: str) -> None:
    """H1: pruning failed each time, and dead letters, lag and the queue behind it never came."""
    child = run.start("control", settings, BLIND)
    run.until(lambda: run.health("control")[0] == 200, START_SECONDS)
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into sluice.repo (did, phase, active) values (%s, 'pending', true)", (DID,))
        letter = dead_letter("firehose https://relay.test", DeadReason.UNDECODABLE, "x", b"x", did=DID)
        LogProducer(settings).send([letter])
        run.until(lambda: db.execute("select count(*) from sluice.dead_letter").fetchone() == (1,))
        run.until(lambda: db.execute("select queued_at is not null from sluice.repo").fetchone() == (True,))
    # the fault fired; the page names one of the steps that ask for partitions
    page = run.until(lambda: (found := run.health("control")[1]).get("state") == "failing" and found)
    assert "list_topics: timed out" in page["why"]
    assert child.restarts == 0
    assert run.supervisor.drain(["control"])


def test_a_coordinator_that_stumbles_stops_no_flow(
    run: Run, settings: Settings, coordinator: Coordinator, database: str, log: str
) -> None:
    """H1: answers to OffsetCommit are swallowed, and index, backfill and control work on."""
    behind = settings.model_copy(
        update={"kafka_bootstrap": coordinator.address, "plc": "http://127.0.0.1:1", "allow_private_hosts": True}
    )
    children = [run.start(kind, behind) for kind in ("index", "backfill", "control")]
    run.until(lambda: all(run.health(kind)[0] == 200 for kind in run.ports), START_SECONDS)
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
    assert [child.restarts for child in children] == [0, 0, 0]
    assert run.supervisor.drain(["index", "backfill", "control"])
    assert not [what for _, what in run.said if "was killed" in what or "exit code" in what]
