"""`sluice status`, `sluice repo`, `sluice record` and the tables of other commands, as text for a terminal."""

import json
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from connectors.postgres.connection import connect
from control.attention import attention
from control.process_status import STREAM_KINDS, check_processes, registered
from control.repo_details import SHOWN
from control.status import PHASES, SQL, Collector, MirrorStatus, Row, buffered_count, rate_text
from protocol.encoding.safe_text import printable
from schemas.settings import Settings

CELL = 60
LINE = 3000


def collect(settings: Settings) -> MirrorStatus:
    """The status of database, broker and processes. Raises psycopg.Error and LogUnavailable."""
    collector = Collector(settings)
    running = registered(settings.data_dir)
    status = collector.with_rates(check_processes(running.processes, STREAM_KINDS) if running else [])
    if running and not status.relays:
        status = replace(status, relays=running.relays)
    collector.close()
    return status


def page(status: MirrorStatus, addresses: Mapping[str, str] | None = None) -> str:
    """The status as text, with the addresses at the end."""
    lines = [
        "repos    "
        + "  ".join(f"{phase} {status.repos[phase]}" for phase in PHASES)
        + f"  (retrying {status.retrying})",
        f"records  about {status.records}{rate_text(status.records_per_second)}"
        f"  labels about {status.labels}  buffered events {buffered_count(status)}",
        "handles  " + "  ".join(f"{what} {count}" for what, count in status.handles.items()),
        f"events   {status.events}{rate_text(status.events_per_second)}",
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
    lines += [f"{name:<8} {address}" for name, address in (addresses or {}).items()]
    return "\n".join(lines)


def repo_page(repo: Row) -> str:
    """What `repo_details` found, as text: the repo in lines, its lists as tables."""
    identity = repo["identity"]
    since = {
        name: _time(repo[column])
        for name, column in (
            ("not counted", "deferred_since"),
            ("stale", "stale_since"),
            ("broken chain", "desynced_at"),
        )
    }
    lines = {
        "repo": repo["did"],
        "handle": _handle(identity) or repo["handle"],
        "pds": identity["pds"] or repo["host"],
        "phase": f"{repo['phase']} ({repo['reason']}) since {_time(repo['phase_since'])}",
        "account": "" if repo["active"] else f"inactive: {repo['status'] or 'no status'}",
        "rev": repo["rev"] and f"{repo['rev']}, tree {repo['data']}, commit {repo['commit']}",
        "seen rev": repo["seen_rev"],
        "attempts": f"{repo['attempt']}; {repo['retry_count']} failed in a row"
        + "".join(f"; {name} since {time_}" for name, time_ in since.items() if time_),
        "begun": ", ".join(map(_time, repo["fetched_at"])),
        "last error": repo["last_error"],
        "next try": repo["phase"] == "pending" and _time(repo["next_retry_at"]),
        "worker": repo["worker"] and f"{repo['worker']} until {_time(repo['lease_until'])}",
        "completed": _time(repo["completed_at"]),
        "buffered": repo["buffered"] and f"{repo['buffered']} live events, which wait for the backfill",
        "records": ", ".join(f"{name} {count}" for name, count in repo["collections"].items()) or "none",
    }
    found = [f"{name:<11} {printable(str(value), LINE)}" for name, value in lines.items() if value]
    for name in ("attempts", "records", "labels", "buffered_events", "dead_letters"):
        if repo[name]:
            shown = [{column: _shown(value, repo["did"]) for column, value in row.items()} for row in repo[name]]
            found += ["", f"{name.replace('_', ' ')}, at most {SHOWN}:", table(shown)]
    return "\n".join(found)


def record_page(record: Row) -> str:
    """A record that `find_record` found: lines of names and values, then its JSON."""
    lines = {
        "uri": record["uri"],
        "cid": record["cid"],
        "rev": record["rev"],
        "indexed": _time(record["indexed_at"]),
        "reason": record["reason"],
        "block": record["raw"] and f"{len(record['raw'])} bytes; --json prints them",
    }
    found = [f"{name:<8} {printable(str(value), LINE)}" for name, value in lines.items() if value]
    text = json.dumps(record["json"], indent=2, ensure_ascii=False)
    return "\n".join(
        found + ([printable(line, len(line)) for line in text.split("\n")] if record["json"] is not None else [])
    )


def as_json_text(row: Row) -> str:
    """A row as JSON: times in ISO 8601, bytes in base64."""
    return json.dumps(
        row, default=lambda value: value.isoformat() if isinstance(value, datetime) else b64encode(value).decode()
    )


def _handle(identity: Row) -> str:
    if identity["verified"] is None:
        return ""
    if identity["verified"]:
        return f"{identity['handle']}, verified {_time(identity['verified_at'])}"
    why = ": ".join(filter(None, (identity["reason"], identity["detail"]))) or "not checked yet"
    return f"claims {identity['handle'] or 'none'}, not verified ({why})"


def _time(moment: datetime | None) -> str:
    return moment.isoformat(sep=" ", timespec="seconds") if moment else ""


def _shown(value: Any, did: str) -> Any:
    if isinstance(value, datetime):
        return _time(value)
    return value.removeprefix(f"at://{did}/") if isinstance(value, str) else value


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
