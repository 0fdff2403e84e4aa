"""The page's data, from database, broker and processes: `PageSnapshot`. Blocks; raises psycopg.Error and LogUnavailable."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from control import jobs
from control.api import models
from control.api.context import Context
from control.api.dead_letter_routes import list_dead_letters
from control.api.mirror_routes import list_repos, list_skipped_ranges
from control.process_status import STREAM_KINDS, check_processes, registered
from control.status import MirrorStatus, Row
from control.tasks.gauges import hosts_with_work
from schemas.job_spec import Job, JobStatus

ROWS = 20
ORDER = (  # of jobs: unfinished ones first
    *(JobStatus.RUNNING, JobStatus.PAUSED_QUOTA_LIMIT, JobStatus.PAUSED, JobStatus.RETRY, JobStatus.PENDING),
    *(JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.COMPLETED),
)
HOSTS_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class PageSnapshot:
    """The state at one moment (`at`: monotonic). Lists have at most `ROWS` rows; the page says where there are more."""

    at: float
    status: MirrorStatus
    jobs: list[Job] = field(default_factory=list)
    hosts: list[Row] = field(default_factory=list)
    failed: list[models.RepoRow] = field(default_factory=list)
    dead_letters: list[models.DeadLetterRow] = field(default_factory=list)
    skipped: list[models.SkippedRangeRow] = field(default_factory=list)


class SnapshotReader:
    """Reads snapshots. The expensive list of hosts is read every HOSTS_SECONDS."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._hosts: list[Row] = []
        self._hosts_at = float("-inf")

    def read(self) -> PageSnapshot:
        """The state now."""
        context = self._context
        running = registered(context.settings.data_dir)
        served = [process for process in running.processes if process.port] if running else []
        processes = check_processes(served, (*STREAM_KINDS, "serve"))
        status = replace(context.status(), processes=processes)
        with context.db() as db:
            found = [job for state in ORDER for job in jobs.list_jobs(db, status=state, limit=ROWS)]
            if time.monotonic() - self._hosts_at > HOSTS_SECONDS:
                self._hosts, self._hosts_at = by_host(hosts_with_work(db, ROWS)), time.monotonic()
        return PageSnapshot(
            at=time.monotonic(),
            status=status,
            jobs=found,
            hosts=self._hosts,
            failed=list_repos(context, limit=ROWS).items,
            dead_letters=list_dead_letters(context, limit=ROWS).items,
            skipped=list_skipped_ranges(context, open=True, limit=ROWS).items,
        )


def by_host(rows: list[Row]) -> list[Row]:
    """(host, phase, repos) → one row per host with `total` and its phases, most work left first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        host = found.setdefault(row["host"], {"host": row["host"], "total": 0})
        host[row["phase"]] = row["repos"]
        host["total"] += row["repos"]
    return sorted(found.values(), key=lambda host: (_done(host) - host["total"], host["host"]))


def _done(host: Row) -> int:
    return int(host.get("sync", 0) + host.get("unavailable", 0) + host.get("excluded", 0))
