"""How often `sluice up` reads the status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from connectors.kafka.log import LogUnavailable
from control.process_status import STREAM_KINDS, Process, check_processes
from control.status import MirrorStatus
from local.status_poller import POLL_SECONDS, QUIET_SECONDS, StatusPoller
from schemas.settings import Settings
from tests.control.test_attention import QUIET


def waits(monkeypatch: pytest.MonkeyPatch, answers: list[Any], *, adaptive: bool = True) -> list[float]:
    """The waits before each of the polls that bring these answers."""
    poller = StatusPoller(Settings(), Any, adaptive=adaptive)  # type: ignore[arg-type]
    found: list[float] = []

    def poll() -> MirrorStatus:
        answer = answers[len(found) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    def wait(seconds: float) -> bool:
        found.append(seconds)
        return len(found) > len(answers)

    monkeypatch.setattr(poller, "poll", poll)
    monkeypatch.setattr(poller._worker, "wait", wait)
    poller._run()
    return found


def test_the_status_is_read_less_often_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """S5: each reading costs every process a page of metrics; a change brings the short interval back."""
    quiet = waits(monkeypatch, [QUIET] * 12)
    assert quiet[0] == quiet[1] == POLL_SECONDS
    assert quiet == sorted(quiet)
    assert quiet[-1] == QUIET_SECONDS
    changed = waits(monkeypatch, [QUIET] * 12 + [replace(QUIET, records=QUIET.records + 1)])
    assert changed[-1] == POLL_SECONDS
    failed = waits(monkeypatch, [QUIET] * 12 + [LogUnavailable("no answer")])
    assert failed[-1] == POLL_SECONDS


def test_only_the_metrics_that_are_shown_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """S5: the pages of the others cost each process and `sluice up` milliseconds, every few seconds."""
    asked: list[tuple[int, str]] = []

    def request(port: int, path: str) -> tuple[int, bytes]:
        asked.append((port, path))
        return 200, b'{"state": "idle", "ready": true}' if path == "/readyz" else b""

    monkeypatch.setattr("control.process_status.request", request)
    kinds = ("control", "serve", "index", "backfill", "labels", "firehose", "list-repos")
    found = check_processes([Process(kind, kind, 1, port) for port, kind in enumerate(kinds, 1)], STREAM_KINDS)
    assert {one.state for one in found} == {"idle"}
    assert {kinds[port - 1] for port, path in asked if path == "/metrics"} == {"labels", "firehose"}
    assert sum(path == "/readyz" for _, path in asked) == len(kinds)


def test_until_synced_the_status_is_read_at_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(waits(monkeypatch, [QUIET] * 12, adaptive=False)) == {POLL_SECONDS}
