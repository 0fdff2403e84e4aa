"""The live view of `sluice up` fits the window: nothing is cut, nothing is above its height."""

from __future__ import annotations

import io
import os
import re
import subprocess
import time
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from connectors.kafka.offsets import PartitionLag
from control.attention import attention
from control.process_status import Process, ProcessStatus, check_process
from control.status import MirrorStatus
from local.progress_view import ProgressView, rates
from local.view.live_view import LiveView, Part, duration, group_state
from tests.control.test_attention import NOW, QUIET
from tests.support.flow_process import wait_until

SIZES = [(60, 15), (80, 24), (120, 40), (200, 50)]
KINDS = ("control", "index", "index", "backfill", "backfill", "labels", "firehose", "list-repos")
PARTS = [Part("simulator", True, 0), *(Part(kind, True, int(kind == "index")) for kind in KINDS)]
PARTS += [Part("kafka", True, 0), Part("postgres", True, 1)]
DATA = "/srv/mirrors/of-my-network/walk"
QUEUE: dict[str, Any] = {"sluice_stream_queue_frames": {(): 3.0}}
EVENTS = [
    "05:43:59 index-1: words of an older event that do not fit on one line of sixty characters",
    *(f"05:44:{second:02} index-1: ended by SIGKILL; restarting in 0.{second % 10} s" for second in range(60)),
]


def job(name: str, **changed: Any) -> dict[str, Any]:
    row = {"name": name, "kind": "relay", "status": "running", "checkpoint": {"done": True}}
    return row | {"listed": 812, "synced": 346, "failed": 1} | changed


STATUS = replace(
    QUIET,
    repos={"pending": 201, "backfill": 14, "sync": 173, "unavailable": 18, "failed": 1, "excluded": 0},
    records=4688,
    labels=315,
    partition_lags=[
        PartitionLag("backfill", "repo_backfill", 0, 0, 0, 202),
        PartitionLag("index", "firehose_live", 0, 0, 1515, 1516),
        PartitionLag("index", "firehose_backfill", 0, 0, 40, 47),
        PartitionLag("index", "label_live", 0, 0, 315, 315),
    ],
    stream_gaps=1,
    handles={"verified": 180, "unverified": 3, "due": 0},
    jobs=[job("list http://127.0.0.1:43005"), job("hosts http://127.0.0.1:45983", status="completed")],
    processes=[
        ProcessStatus(
            f"{kind}-{n}", kind, n, n, "working", ready=True, metrics=QUEUE if kind in ("firehose", "labels") else {}
        )
        for n, kind in enumerate(KINDS, 1)
    ],
)
LARGE = replace(
    STATUS,
    repos={
        "pending": 12_345_678,
        "backfill": 1_234,
        "sync": 30_123_456,
        "unavailable": 1_234_567,
        "failed": 12_345,
        "excluded": 1_000_000,
    },
    records=17_123_456_789,
    labels=123_456_789,
    buffered_events=100_000,
    partition_lags=[PartitionLag("index", "firehose_live", 0, 0, 0, 123_456_789)],
)
RATES = {"found": 1.0, "done": 1.2, "records": 62.0, "events": 10.0, "labels": 0.3}
FAST = {"found": 1_234.0, "done": 1_234.5, "records": 43_210.0, "events": 1_234.0, "labels": 123.0}


def shown(
    width: int, height: int, status: MirrorStatus | None = STATUS, events: list[str] = EVENTS, **changed: Any
) -> str:
    """The window's lines as text."""
    addresses = {"data": DATA, "page": "http://127.0.0.1:8099/"}
    view = LiveView(addresses, status, RATES, PARTS if status else (), events=events)
    if status is not None:
        view.problems = attention(status, now=NOW)
    for name, value in changed.items():
        setattr(view, name, value)
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as screen:
        console.print(view, end="")
    return screen.get()


@pytest.mark.parametrize(("width", "height"), [*SIZES, (61, 16), (100, 20), (119, 60), (300, 15), (60, 90)])
@pytest.mark.parametrize(("status", "speed"), [(STATUS, RATES), (LARGE, FAST)])
def test_it_fits_the_window_and_nothing_is_cut(
    width: int, height: int, status: MirrorStatus, speed: dict[str, float]
) -> None:
    """B11."""
    text = shown(width, height, status, rates=speed)
    lines = text.splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "…" not in text
    words = " ".join(text.replace("│", " ").split())
    assert re.search(r"\d+ %", words)
    for phase, repos in status.repos.items():
        assert not repos or re.search(rf"{phase} ({repos:,}|[\d.]+ M)", words)
    for kind in ("control", "index ×2", "backfill ×2", "labels", "firehose", "list-repos"):
        assert kind in words
    assert f"records about {status.records:,}" in words or (height < 24 and "records about 17.1 G" in words)
    assert "gaps in streams or the log: 1" in words
    assert EVENTS[-1].partition(" ")[0] in words
    if status is STATUS and height >= 24:
        assert f"data {DATA}" in words
        assert "page http://127.0.0.1:8099/" in words
    if status is STATUS:
        assert "407 repos" in words
        assert "1.2/s" in words
        assert "3 min left" in words


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_half_of_it_is_empty(width: int, height: int) -> None:
    lines = shown(width, height).splitlines()
    assert len([line for line in lines if line.strip(" │")]) >= height - 4
    assert max(len(line.rstrip()) for line in lines) > 0.8 * width


@pytest.mark.parametrize(("width", "height"), [(20, 5), (1, 1), (59, 8)])
def test_a_smaller_window_fails_nothing(width: int, height: int) -> None:
    lines = shown(width, height).splitlines()
    assert len(lines) <= height


def test_a_long_event_and_many_problems_leave_room() -> None:
    """What has no room is marked, the worst problem and the newest event are there."""
    status = replace(
        STATUS,
        dead_letters={"open": 7},
        skipped_ranges=3,
        processes=[*STATUS.processes, ProcessStatus("labels", "labels", 1, 1, "failing", why="x" * 900)],
    )
    text = shown(80, 24, status, [*EVENTS, f"06:00:00 backfill-1: {'words ' * 150}"])
    assert len(text.splitlines()) <= 24
    assert "! failing: labels:" in text
    assert "more: `sluice status`" in text
    assert "06:00:00 backfill-1: words" in text
    assert "…" in text


def test_an_older_event_is_whole_or_left_out() -> None:
    assert "…" not in shown(60, 15, events=EVENTS[:2])
    quiet = replace(STATUS, stream_gaps=0, repos=QUIET.repos)
    assert "…" not in shown(60, 15, quiet, EVENTS[:2])
    assert "older event" in shown(60, 15, quiet, EVENTS[:2])


def test_it_says_starting() -> None:
    before = shown(80, 24, None, ["05:44:20 database: applied 4 migrations, the last is 0004.sql"])
    assert "starting" in before
    assert "down" not in before
    young = [replace(one, state="starting", ready=False, why="refused") for one in STATUS.processes]
    text = shown(80, 24, replace(STATUS, processes=young, stream_gaps=0))
    assert "starting" in text
    assert "down" not in text
    assert group_state([Part("index", True, 0)] * 2, []) == ("starting", "yellow")


def test_a_process_is_starting_in_its_first_minute_and_down_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """B11. The minute counts from the start of the process, not from the first check."""
    with subprocess.Popen(["sleep", "60"]) as child:
        mine = Process("index-1", "index", child.pid, 1)  # nothing listens on port 1
        try:
            time.sleep(0.5)  # older than the second limit
            assert check_process(mine).state == "starting"
            monkeypatch.setattr("control.process_status.STARTING_SECONDS", 0.4)
            assert check_process(mine).state == "down"
            monkeypatch.undo()
        finally:
            child.kill()
    assert check_process(mine).state == "down"


def test_the_worst_state_of_a_kind_is_shown() -> None:
    parts = [Part("index", True, 0), Part("index", True, 0)]
    seen = [replace(STATUS.processes[0], kind="index", state=state) for state in ("idle", "failing")]
    assert group_state(parts, seen) == ("failing (1 of 2)", "red")
    assert group_state([parts[0], Part("index", False, 3)], seen[:1]) == ("restarting (1 of 2)", "red")
    assert group_state(parts, [seen[0], replace(seen[0], state="working", ready=False)])[0] == "stalled (1 of 2)"
    assert group_state([Part("kafka", True, 0)], []) == ("running", "green")
    halted = [replace(seen[0], state="stopped", pid=0), seen[0]]
    assert group_state([Part("index", False, 0, stopped=True), parts[0]], halted) == ("stopped (1 of 2)", "yellow")


def test_time_left_only_when_it_is_known() -> None:
    listing = replace(STATUS, jobs=[job("list x", checkpoint={})])
    assert "still listing" in shown(80, 24, listing)
    assert "time left unknown" in shown(80, 24, rates={})
    done = replace(STATUS, repos={**STATUS.repos, "pending": 0, "backfill": 0})
    assert "100 %  complete, live" in shown(80, 24, done)
    assert [duration(seconds) for seconds in (5, 180, 7200, 864_000)] == ["5 s", "3 min", "2 h", "10 days"]


def test_rates_are_of_the_last_half_minute() -> None:
    assert rates(STATUS, replace(STATUS, records=STATUS.records + 100), 4.0)["records"] == 25.0
    assert rates(STATUS, replace(STATUS, records=0), 4.0)["records"] == 0.0
    assert rates(STATUS, STATUS, 0.0) == {}
    moments = iter(float(second) for second in range(0, 300, 10))
    view = ProgressView(
        Console(file=io.StringIO(), force_terminal=True, width=80, height=24), clock=lambda: next(moments)
    )
    for number in range(20):
        view.show(replace(STATUS, records=1000 * number), PARTS)
    assert len(view._seen) == 4
    assert view._view.rates["records"] == 100.0


def test_a_new_size_is_drawn_whole_and_the_last_notes_stay_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen of its own while it runs: each frame fills the window and is drawn from its corner."""
    size = [80, 24]
    monkeypatch.setattr("rich.console.os.get_terminal_size", lambda _=0: os.terminal_size(size))
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system=None, markup=False, _environ={"TERM": "xterm"})
    with ProgressView(console) as view:
        view.show(STATUS, PARTS)
        for size[:] in ([60, 15], [200, 50]):
            view.note("index-1", f"at {size[0]}")
        view.note("sluice", "stopping")
    text = written.getvalue()
    assert text.index("\x1b[?1049h") < text.index("\x1b[?1049l")
    within, _, after = text.partition("\x1b[?1049l")
    frames = [re.sub(r"\x1b\[\S*?[a-z]", "", frame).split("\n") for frame in within.split("\x1b[H")[2:]]
    assert {(len(frame), *map(len, frame)) for frame in frames} == {
        (height, *[width] * height) for width, height in ((80, 24), (60, 15), (200, 50))
    }
    assert after.splitlines()[-1].endswith("sluice: stopping")


def test_the_window_is_looked_at_again_without_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new size is seen by the next refresh, which needs no event."""
    size = [80, 24]
    monkeypatch.setattr("rich.console.os.get_terminal_size", lambda _=0: os.terminal_size(size))
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, color_system=None, markup=False, _environ={"TERM": "xterm"})
    view = ProgressView(console)
    assert view._live is not None
    view._live.refresh_per_second = 100
    with view:
        view.show(STATUS, PARTS)
        size[:] = [200, 50]
        wait_until(lambda: "│" in written.getvalue())
