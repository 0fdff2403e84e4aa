"""One function judges what needs attention, and everything that an operator looks at shows all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from rich.console import Console

from cli.status_text import page
from connectors.kafka.offsets import PartitionLag
from control.attention import SILENT_SECONDS, as_json, attention
from control.page.account_routes import runbook
from control.page.page_snapshot import PageSnapshot
from control.page.rendering import render_sections
from control.process_status import ProcessStatus
from control.status import Collector, MirrorStatus
from local.progress_view import plain
from local.view.live_view import LiveView
from ops import doctor
from schemas.settings import Settings

NOW = 1_000_000.0
RELAY = "https://relay.test"
QUIET = MirrorStatus(
    repos=dict.fromkeys(("pending", "backfill", "sync", "unavailable", "failed", "excluded"), 0),
    retrying=0,
    records=0,
    labels=0,
    buffered_events=0,
    partition_lags=[],
    failing_hosts=[],
    failures=[],
    cursors=[],
    dead_letters={},
    jobs=[],
    skipped_ranges=0,
    stream_gaps=0,
)


def process(kind: str, state: str, *, ready: bool, started: float = NOW) -> ProcessStatus:
    metrics = {"sluice_started_timestamp_seconds": {(("flow", kind),): started}}
    return ProcessStatus(f"{kind}-1", kind, 1, 1, state, "why", ready, metrics)


def cursor(flow: str, upstream: str, age: float, *, in_use: bool = True) -> dict[str, Any]:
    return {"flow": flow, "upstream": upstream, "position": "1", "age_seconds": age, "in_use": in_use, "share": ""}


def host(failures: int) -> dict[str, Any]:
    return {
        "host": "https://pds.test",
        "consecutive_failures": failures,
        "failures": failures,
        "requests": 9,
        "last_error": "HTTP 500",
        "pause_reason": None,
        "paused_seconds": None,
    }


TROUBLES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "a stalled process": ({"processes": [process("index", "working", ready=False)]}, "stalled: index-1", True),
    "a failing process": ({"processes": [process("index", "failing", ready=True)]}, "failing: index-1: why", True),
    "a process that is gone": ({"processes": [process("index", "down", ready=False)]}, "down: index-1", True),
    "a paused process": ({"processes": [process("backfill", "paused", ready=True)]}, "paused: backfill-1: why", False),
    "lost messages": (
        {
            "partition_lags": [
                PartitionLag("index", "firehose_live", 0, 1000, 100, 1100),
                PartitionLag("index", "firehose_live", 1, 986, 100, 1000),
            ]
        },
        "lost to retention: 1786 messages of firehose_live",
        True,
    ),
    "a group past the end": (
        {"partition_lags": [PartitionLag("index", "label_live", 0, 0, 9, 1)]},
        "past the end",
        True,
    ),
    "a relay that fell silent": (
        {"relays": [RELAY], "cursors": [cursor("firehose", RELAY, 540.0)]},
        f"silent: no event from {RELAY} for 9 min",
        True,
    ),
    "a share that does not move": (
        {"relays": [RELAY], "cursors": [cursor("firehose", RELAY, age) for age in (540.0, 1.0)]},
        f"silent: no event from {RELAY} for 9 min",
        True,
    ),
    "a share that never ran": (
        {"relays": [RELAY], "cursors": [cursor("firehose", RELAY, 1.0) | {"share": f"{n} of 3"} for n in (0, 1)]},
        f"share 2 of 3 of {RELAY} has no position",
        True,
    ),
    "a relay that never said anything": (
        {"relays": [RELAY], "processes": [process("firehose", "idle", ready=True, started=NOW - 540)]},
        f"silent: no event from {RELAY} for 9 min",
        True,
    ),
    "lost stretches": ({"stream_gaps": 2}, "gaps in streams or the log: 2", False),
    "a failing host": ({"failing_hosts": [host(3)]}, "https://pds.test: 3 failures in a row (HTTP 500)", False),
    "failed repos": ({"repos": QUIET.repos | {"failed": 4}}, "failed repos: 4", False),
    "a failed job": (
        {"jobs": [{"name": "list x", "status": "failed", "listed": 0, "queued": 0}]},
        "failed jobs: list x",
        False,
    ),
    "a storm": ({"storms": {"lost_event": 9}}, "storm of refetches held: 9 repos for lost_event", True),
    "dead letters": ({"dead_letters": {"open": 7, "dismissed": 2}}, "dead letters: 7 open", False),
    "skipped ranges": ({"skipped_ranges": 1}, "skipped listing ranges: 1", False),
}
FINE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a process at work": {"processes": [process("index", "working", ready=True)]},
    "a process that starts": {"processes": [process("index", "starting", ready=False)]},
    "an embedded server": {"processes": [ProcessStatus("kafka", "kafka", 1, 0, "running", ready=True)]},
    "a relay that was heard": {"relays": [RELAY], "cursors": [cursor("firehose", RELAY, SILENT_SECONDS - 1)]},
    "a relay that is no longer ours": {"relays": [RELAY], "cursors": [cursor("firehose", "https://old.test", 1e6)]},
    "a row of a former number of shares": {"cursors": [cursor("firehose", RELAY, 1e6, in_use=False)]},
    "a firehose that just started": {"relays": [RELAY], "processes": [process("firehose", "idle", ready=True)]},
    "a quiet labeler": {"cursors": [cursor("labels", "https://labeler.test", 1e6)]},
    "a closed letter": {"dead_letters": {"dismissed": 2}},
}


@pytest.mark.parametrize("name", TROUBLES)
def test_each_trouble_is_shown_everywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """B11."""
    monkeypatch.setattr("time.time", lambda: NOW)
    changed, what, bad = TROUBLES[name]
    status = replace(QUIET, **changed)
    (trouble,) = [one for one in attention(status, now=NOW) if what in one.what]
    assert trouble.bad == bad
    assert trouble.remedy
    assert trouble.runbook in dict(runbook()), "a section of docs/runbook.md"
    assert what in page(status)
    assert what in plain(status, 0)
    assert what in render_sections(PageSnapshot(at=0.0, status=status))["attention"]

    class Seen:
        def __init__(self, _: Settings) -> None: ...

        def collect(self, _: object) -> MirrorStatus:
            return status

        def close(self) -> None: ...

    monkeypatch.setattr(doctor, "Collector", Seen)
    checks = doctor._attention(Settings(data_dir="/nowhere"))
    assert [check.state for check in checks if what in check.detail] == [
        doctor.CheckState.FAIL if bad else doctor.CheckState.WARN
    ]


@pytest.mark.parametrize("name", FINE)
def test_what_is_fine_needs_no_attention(name: str) -> None:
    """B11."""
    assert attention(replace(QUIET, **FINE[name]), now=NOW) == []


def test_json_carries_the_same() -> None:
    """Also with the processes' metrics, whose labels are no keys of JSON."""
    status = replace(QUIET, processes=[process("index", "working", ready=False)])
    page = json.loads(json.dumps(as_json(status)))
    assert [one["what"].partition(":")[0] for one in page["attention"]] == ["stalled"]
    assert [one["name"] for one in page["processes"]] == ["index-1"]


def test_the_worst_comes_first() -> None:
    status = replace(QUIET, dead_letters={"open": 1}, partition_lags=[PartitionLag("index", "label_live", 0, 0, 9, 1)])
    assert [trouble.bad for trouble in attention(status, now=NOW)] == [True, False]


def test_every_screen_calls_buffered_events_by_that_name() -> None:
    """B11: and says "or more" where the count stopped."""
    status = replace(QUIET, buffered_events=100_000)
    terminal = Console(width=200)
    with terminal.capture() as shown:
        terminal.print(LiveView(status=status))
    for screen, words in (
        (page(status), "buffered events 100,000 or more"),
        (shown.get(), "buffered 100,000 or more"),
        (render_sections(PageSnapshot(at=0.0, status=status))["coverage"], "100,000 or more live events buffered"),
    ):
        assert words in screen
        assert "held" not in screen


def test_buffered_events_are_counted_and_not_estimated(settings_of: Callable[..., Settings], database: str) -> None:
    """B11: PostgreSQL's statistics went on saying nine when there were none."""
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("insert into sluice.buffered_event select 'did:plc:x', n, '', '' from generate_series(1, 9) n")
        db.execute("analyze sluice.buffered_event")
        collector = Collector(settings_of(database=database))
        assert collector.collect().buffered_events == 9
        db.execute("delete from sluice.buffered_event")
        seen = collector.collect()
        collector.close()
        ((estimated,),) = db.execute(
            "select reltuples from pg_class where oid = 'sluice.buffered_event'::regclass"
        ).fetchall()
    assert estimated == 9
    assert seen.buffered_events == 0
