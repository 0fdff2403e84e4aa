"""What hosts say reaches a terminal, a log and a table without control characters."""

from __future__ import annotations

import io
import logging

from rich.console import Console

from cli.status_text import table
from connectors.kafka.offsets import PartitionLag
from connectors.runtime import logs
from connectors.runtime.health import Health
from control.process_status import ProcessStatus
from control.status import PHASES, MirrorStatus
from local.progress_view import ProgressView, problems
from simulator.faults.hostile_lists import ESCAPES


def clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_a_health_page_and_a_log_line_are_printable() -> None:
    """H8: `sluice up` and `sluice status` show what the health page says."""
    health = Health("list_repos")
    health.report("failing", f"https://relay.example: {ESCAPES}")
    assert clean(health.why)
    assert "\ufffd]0;owned\ufffd WARNING forged line" in health.why
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "attempt ended", (), None)
    record.why = ESCAPES
    shown = logs._Text().format(record)
    assert clean(shown)
    assert "\n" not in shown


def test_a_table_is_printable() -> None:
    """H8: `sluice dead-letters list`, `sluice skipped list`, `sluice hosts list`, also of rows from before."""
    shown = table([{"host": "https://pds.example", "last_error": ESCAPES}])
    assert clean(shown)
    assert len(shown.split("\n")) == 2


def status() -> MirrorStatus:
    """A mirror of which everything that others wrote is hostile."""
    return MirrorStatus(
        repos=dict.fromkeys(PHASES, 1),
        retrying=0,
        records=0,
        labels=0,
        buffered_events=0,
        partition_lags=[PartitionLag("index", "firehose_live", 0, 0, 7, 7)],
        failing_hosts=[
            {
                "host": f"https://{n}",
                "pause_reason": ESCAPES,
                "paused_seconds": 9,
                "consecutive_failures": 3,
                "last_error": ESCAPES,
            }
            for n in range(2)
        ],
        failures=[],
        cursors=[],
        dead_letters={},
        jobs=[],
        skipped_ranges=0,
        stream_gaps=0,
        processes=[ProcessStatus("list-repos", "list_repos", 1, 1, "failing", why=ESCAPES, metrics={})],
    )


def test_the_view_of_up_is_printable() -> None:
    """H8: on a terminal and as plain lines, a crashed process's last words too."""
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, markup=False, highlight=False, color_system=None)
        with ProgressView(console) as progress:
            progress.note("backfill-1", f"exited: {ESCAPES}")
            progress.show(status(), ())
        shown = out.getvalue()
        assert "]0;owned" in shown
        assert "\x1b]0" not in shown
        assert "\x07" not in shown
        assert not any(line.strip().startswith("WARNING") for line in shown.split("\n") if not terminal)
    assert all(map(clean, problems(status())))
