"""The probes of the manifests, asked of real processes as a kubelet asks them: which of them kills what."""

import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.manifest_checks import pods
from tests.deploy.rendering import rendered
from tests.runtime.test_watchdog import IN_C, Probe, probe
from tests.support.flow_process import suspend, wait_until

__all__ = ["probe"]

WAITS_FOR_STOP = "STOP.wait()"
CONTAINERS = [pod.spec["containers"][0] for pod in pods(rendered("production")) if pod.ours]


def succeeds(kind: str, url: str) -> bool:
    """The answer of this probe, which all our containers have in common, at the process with this URL."""
    wanted: dict[str, Any] = CONTAINERS[0][kind]
    assert all(container[kind] == wanted for container in CONTAINERS)
    try:
        with urllib.request.urlopen(url + wanted["httpGet"]["path"], timeout=wanted.get("timeoutSeconds", 1)) as answer:
            return bool(200 <= answer.status < 400)
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.fixture
def started(probe: Callable[..., Probe]) -> Callable[..., Probe]:
    def start(code: str, seconds: float) -> Probe:
        process = probe(code, seconds=seconds, stop_seconds=60.0)
        wait_until(lambda: succeeds("livenessProbe", process.url))
        return process

    return start


def test_a_process_that_waits_for_its_servers_is_alive_and_not_ready(started: Callable[..., Probe]) -> None:
    """It is not restarted, and gets no requests: liveness is not readiness."""
    waiting = started(WAITS_FOR_STOP, seconds=600.0)
    wait_until(lambda: succeeds("startupProbe", waiting.url))
    assert not succeeds("readinessProbe", waiting.url)
    wait_until(lambda: succeeds("livenessProbe", waiting.url))


def test_a_suspended_process_fails_its_liveness_probe(started: Callable[..., Probe]) -> None:
    """Neither its watchdog nor SIGTERM reaches it: only the kubelet can end it."""
    frozen = started(WAITS_FOR_STOP, seconds=600.0)
    suspend(frozen.process.pid)
    assert not succeeds("livenessProbe", frozen.url)
    frozen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: succeeds("livenessProbe", frozen.url))


def test_a_process_whose_thread_hangs_fails_its_liveness_probe(started: Callable[..., Probe]) -> None:
    """It then ends by itself, before the kubelet's six failures."""
    hanging = started(f"with watchdog.watched('the flow'):\n    time.sleep(1)\n    {IN_C}", seconds=2.0)
    wait_until(lambda: not succeeds("livenessProbe", hanging.url))
    assert hanging.process.wait(20) != 0
