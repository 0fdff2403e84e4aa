"""`sluice status` and the tables of other commands, as text for a terminal."""

import json
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from connectors.postgres.connection import connect
from control.attention import attention
from control.process_status import check_processes, registered
from control.status import PHASES, SQL, Collector, MirrorStatus, Row, buffered_count
from local.progress_view import rated
from protocol.encoding.safe_text import printable
from schemas.settings import Settings

RATE_SECONDS = 1.0
CELL = 60


def collect(settings: Settings) -> MirrorStatus:
    """The status, collected twice one second apart for the rates. Raises psycopg.Error and LogUnavailable."""
    collector = Collector(settings)
    before, started = collector.collect(), time.monotonic()
    time.sleep(RATE_SECONDS)
    running = registered(settings.data_dir)
    processes = check_processes(running.processes, with_metrics=True) if running else []
    status = rated(before, collector.collect(processes), time.monotonic() - started)
    if running and not status.relays:
        status = replace(status, relays=running.relays)
    collector.close()
    return status


def page(status: MirrorStatus) -> str:
    """The status as text."""
    lines = [
        "repos    "
        + "  ".join(f"{phase} {status.repos[phase]}" for phase in PHASES)
        + f"  (retrying {status.retrying})",
        f"records  about {status.records} ({status.records_per_second or 0:.0f}/s)"
        f"  labels about {status.labels}  buffered events {buffered_count(status)}",
        "handles  " + "  ".join(f"{what} {count}" for what, count in status.handles.items()),
        f"events   {status.events} ({status.events_per_second or 0:.0f}/s)",
        "lag      " + "  ".join(f"{group}/{topic} {lag}" for (group, topic), lag in status.lag.items()),
    ]
    for problem in attention(status, now=time.time()):
        lines.append(f"!        {problem.what}; {problem.remedy}")
    for row in status.failures:
        lines.append(f"failed   {row['count']} repos: {row['last_error']}")
    for job in status.jobs:
        lines.append(f"job      {job['name']}: {job['status']}, listed {job['listed']}, new {job['queued']}")
    if status.jobs_found > len(status.jobs):
        lines.append(f"job      {status.jobs_found - len(status.jobs)} more: `sluice backfill list`")
    for row in status.cursors:
        position = row["position"] or "the first page"
        share = f" share {row['share']}" if row["share"] else ""
        lines.append(f"cursor   {row['flow']} {row['upstream']}{share} at {position}, {row['age_seconds']:.0f} s old")
    for seen in status.processes:
        why = f" ({seen.why})" if seen.why else ""
        lines.append(f"process  {seen.name} pid {seen.pid} port {seen.port or '-'}: {seen.state}{why}")
    letters = "  ".join(f"{state} {count}" for state, count in status.dead_letters.items()) or "none"
    gaps = f"{status.stream_gaps}{' (until the next complete listing)' if status.stream_gaps else ''}"
    lines.append(f"dead letters  {letters}   skipped ranges {status.skipped_ranges}   stream gaps {gaps}")
    return "\n".join(lines)


def rows(settings: Settings, query: str, values: dict[str, object]) -> list[Row]:
    """Rows of a named query, as JSON values."""
    with connect(settings.database, "sluice status", dict_row) as db:
        found = db.execute(SQL[query], values or None).fetchall()
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in found
    ]


def table(found: list[Row]) -> str:
    """Rows in columns. Long cells are cut; `--json` has the whole values."""
    if not found:
        return "none"
    cells = [[*found[0]], *([_cell(value) for value in row.values()] for row in found)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _cell(value: Any) -> str:
    text = "" if value is None else json.dumps(value) if isinstance(value, dict) else str(value)
    return printable(text, CELL)
