"""The liveness probe of `sluice up`, with real processes: it has those restarted that do not answer, and no others."""

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.process_status import request
from local.children.liveness import (
    FAILURES,
    PERIOD_SECONDS,
    STARTUP_FAILURES,
    STARTUP_PERIOD_SECONDS,
    TIMEOUT_SECONDS,
    Liveness,
)
from local.children.supervisor import Command, Supervisor
from local.embedded.guarded_process import free_port
from tests.deploy.rendering import K8S, read
from tests.local.test_supervisor import Heard, until

SCALE = 0.05  # 15 seconds for a start
SERVER = """
import http.server, sys
class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Pages).serve_forever()
"""
MUTE = "import time; time.sleep(600)"


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def supervisor(tmp_path: Path, heard: Heard) -> Iterator[Supervisor]:
    liveness = Liveness(lambda: made.processes, SCALE)
    made = Supervisor(tmp_path / "logs", heard, failed=liveness.failed)
    liveness.start()
    yield made
    liveness.stop()
    made.kill()


def served(kind: str, code: str) -> Command:
    port = free_port()
    return Command(kind, kind, (sys.executable, "-c", textwrap.dedent(code.format(port=port))), {}, port)


def answers(command: Command, path: str) -> int:
    try:
        return request(command.port, path, 1.0)[0]
    except OSError:
        return 0


def has_answered(supervisor: Supervisor, pid: int) -> bool:
    """Whether a probe of it has succeeded: from then on FAILURES are enough."""
    probed = supervisor._failed.__self__._probed.get(pid)  # type: ignore[attr-defined]
    return probed is not None and probed.answered


def test_a_frozen_process_is_killed_and_restarted(
    supervisor: Supervisor, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: a process that answers nothing does not hold up the mirror until somebody looks."""
    monkeypatch.setattr("local.children.supervisor.DRAIN_SECONDS", 0.5)
    child = supervisor.add(served("index", SERVER))
    until(lambda: answers(child.command, "/healthz") == 200)
    first = child.pid
    until(lambda: has_answered(supervisor, first))
    os.kill(first, signal.SIGSTOP)
    until(lambda: child.running and child.pid != first, supervisor.tick)
    assert "/healthz failed 6 times in a row (timed out); it is stopped" in heard.said[0][1]
    assert heard.said[1][1].startswith("ended by SIGKILL; restarting"), "SIGTERM does not reach a frozen process"
    until(lambda: answers(child.command, "/healthz") == 200, supervisor.tick)
    assert child.restarts == 1


def test_a_process_that_waits_for_a_dependency_is_not_restarted(supervisor: Supervisor, heard: Heard) -> None:
    """It is not ready, and alive: a restart would mend nothing. On Kubernetes it is not restarted, either."""
    child = supervisor.add(served("index", SERVER))
    until(lambda: answers(child.command, "/readyz") == 503)
    end = time.monotonic() + 2 * (STARTUP_FAILURES * STARTUP_PERIOD_SECONDS) * SCALE
    until(lambda: time.monotonic() > end, supervisor.tick)
    assert child.restarts == 0
    assert heard.said == []


def test_a_process_that_starts_has_more_time(supervisor: Supervisor, heard: Heard) -> None:
    child = supervisor.add(served("index", MUTE))
    first = child.pid
    until(lambda: heard.said, supervisor.tick)
    assert f"/healthz failed {STARTUP_FAILURES} times in a row" in heard.said[0][1]
    until(lambda: child.running and child.pid != first, supervisor.tick)


def test_the_limits_are_those_of_the_manifests() -> None:
    (pod,) = read((K8S / "base" / "pod.yaml").read_text("utf-8"))
    container = pod["spec"]["template"]["spec"]["containers"][0]
    live, startup = container["livenessProbe"], container["startupProbe"]
    assert live["httpGet"]["path"] == startup["httpGet"]["path"] == "/healthz"
    assert (live["periodSeconds"], live["timeoutSeconds"]) == (PERIOD_SECONDS, TIMEOUT_SECONDS)
    assert live["failureThreshold"] == FAILURES
    assert (startup["periodSeconds"], startup["failureThreshold"]) == (STARTUP_PERIOD_SECONDS, STARTUP_FAILURES)
