"""Each benchmark of the pipeline runs, with a size of seconds, and prints its figures (bench/).

`index` runs as an operator runs it, with servers of its own. The others are called here, over the session's servers, and their
processes are forked: what they do with servers and processes is the same code.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from tests.support import ROOT, zygote
from tests.support.broker import LogScope
from tests.support.size import LONG

SMALL = {
    "index": ("--records", "600", "--present", "600", "--per-repo", "20", "--live", "300"),
    "firehose": ("--events", "300", "--repos", "20"),
    "backfill": ("--repos", "10", "--records-per-repo", "20"),
    "serve": ("--events", "400", "--live", "20", "--rate", "40"),
    "serve_reads": ("--repos", "2", "--records", "300", "--requests", "50"),
}


@contextmanager
def forked(command: list[str], *, env: Any = None, stdout: int = 2, stderr: Any = None, text: bool = True) -> Any:
    """`subprocess.Popen` of `python -m MODULE …`. Its parent is another process than ours, so it is not given one."""
    job = [word for at, word in enumerate(command) if "--parent" not in command[max(0, at - 1) : at + 1]]
    child = zygote.spawn(["module", *job[2:]], env=env, stdout=stdout, stderr=2)
    try:
        yield child
    finally:
        child.kill()
        child.wait(60)


@pytest.fixture
def shared_log(log_scope: LogScope, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Benchmarks use the session's log and forked processes."""
    processes = SimpleNamespace(Popen=forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    server = SimpleNamespace(pid=os.getpid(), bootstrap=log_scope.bootstrap)
    monkeypatch.setattr("bench.support.stack.EmbeddedLog", lambda *_: nullcontext(server))
    for module in ("stack", "simulated"):
        monkeypatch.setattr(f"bench.support.{module}.subprocess", processes)
    monkeypatch.setenv("SLUICE_KAFKA_TOPIC_PREFIX", log_scope.prefix)
    yield
    made = log_scope.admin.list_topics(timeout=60).topics
    log_scope.created += [name for name in made if name.startswith(log_scope.prefix)]


@pytest.fixture
def shared_servers(shared_log: None, blank_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's PostgreSQL, too."""
    server = SimpleNamespace(pid=os.getpid(), url=blank_database)
    monkeypatch.setattr("bench.support.stack.EmbeddedDatabase", lambda *_, **__: nullcontext(server))


def check(name: str, printed: str) -> None:
    figures = json.loads(printed.splitlines()[-1])
    assert figures["bench"] == name
    assert figures["floor_per_second"] > 0, "the rate itself is 0 where one look sees all of so small a run"


def test_a_benchmark_runs_with_servers_of_its_own() -> None:
    command = [sys.executable, "-m", "bench.index", *SMALL["index"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    check("index", done.stdout)


@pytest.mark.usefixtures("shared_servers")
@pytest.mark.parametrize("name", ["firehose", "backfill", "serve", "serve_reads"])
def test_a_benchmark_runs_and_prints_its_figures(
    name: str, blank_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"bench.{name}", *SMALL[name]])
    importlib.import_module(f"bench.{name}").main()
    check(name, capsys.readouterr().out)
    with psycopg.connect(blank_database) as db:
        assert db.execute("select count(*) > 0 from sluice.migration").fetchone() == (True,)  # it used these servers


# rows, rows at first, shared_buffers, parts: an index of three times the memory. 64 parts have 64 right edges, of 2 MB together
GROWTH = (2_000_000, 0.3, "32MB", 64) if LONG else (240_000, 0.04, "4MB", 4)


@pytest.mark.usefixtures("shared_log")
def test_the_rate_holds_while_the_table_outgrows_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S1, S2. Blocks instead of seconds: a row touches as many when the index has outgrown shared_buffers, and reads none."""
    rows, first, buffers, parts = GROWTH
    monkeypatch.setenv("PGOPTIONS", f"-c sluice.record_parts={parts}")
    sizes = ["--rows", str(rows), "--at", str(first), "--buffers", buffers]
    sizes += ["--records", "12000", "--beside", "0", "--live", "400"]
    monkeypatch.setattr("sys.argv", ["bench.growth", *sizes])
    importlib.import_module("bench.growth").main()
    small, large = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert large["rows"] >= 5 * small["rows"]
    assert large["backfill"]["touched"] <= small["backfill"]["touched"] / 0.85
    assert large["backfill"]["read"] < 30, "blocks a thousand rows"
    assert large["live"]["touched"] <= small["live"]["touched"] / 0.85
    assert large["bytes"]["indexes"] < 50, "65 where rows do not go to the right edge"
    assert sum(large["bytes"][part] for part in ("heap", "indexes", "rest")) <= 440
