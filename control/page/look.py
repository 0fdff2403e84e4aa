"""What the page shows, gathered: database, broker and processes → `Look`. Blocks; raises psycopg.Error and LogUnavailable."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from control import jobs
from control.api import dead_letter_routes, mirror_routes, models
from control.api.context import Context
from control.process_status import Sighting, look_at_all, registered
from control.status import Row, Status
from control.tasks.gauges import hosts_with_work
from schemas.job_spec import Job, JobStatus

ROWS = 20
ORDER = (  # of jobs: what moves or could, then what is over
    *(JobStatus.RUNNING, JobStatus.PAUSED_QUOTA_LIMIT, JobStatus.PAUSED, JobStatus.RETRY, JobStatus.PENDING),
    *(JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.COMPLETED),
)
HOSTS_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look. `at` is a monotonic time; lists are cut at `ROWS`, and the page says where there is more."""

    at: float
    status: Status
    processes: list[Sighting] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    hosts: list[Row] = field(default_factory=list)
    failed: list[models.RepoRow] = field(default_factory=list)
    letters: list[models.DeadLetterRow] = field(default_factory=list)
    skipped: list[models.SkippedRangeRow] = field(default_factory=list)
    relays: list[str] = field(default_factory=list)


class Looker:
    """Takes looks; what is dear and changes slowly is kept for half a minute."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._hosts: list[Row] = []
        self._hosts_at = float("-inf")

    def look(self) -> Look:
        """A look now."""
        context = self._context
        running = registered(context.settings.data_dir)
        mine = [process for process in running.processes if process.port] if running else []
        seen = look_at_all(mine, with_metrics=True)
        status = context.status()
        with context.db() as db:
            found = [job for status in ORDER for job in jobs.list_jobs(db, status=status, limit=ROWS)]
            if time.monotonic() - self._hosts_at > HOSTS_SECONDS:
                self._hosts, self._hosts_at = by_host(hosts_with_work(db, ROWS)), time.monotonic()
        return Look(
            at=time.monotonic(),
            status=replace(status, processes=seen),
            processes=seen,
            jobs=found,
            hosts=self._hosts,
            failed=mirror_routes.list_repos(context, limit=ROWS).items,
            letters=dead_letter_routes.list_dead_letters(context, limit=ROWS).items,
            skipped=mirror_routes.list_skipped_ranges(context, open=True, limit=ROWS).items,
            relays=context.settings.relays,
        )


def by_host(rows: list[Row]) -> list[Row]:
    """(host, phase, repos) → one row per host with `total` and the phases, most work left first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        host = found.setdefault(row["host"], {"host": row["host"], "total": 0})
        host[row["phase"]] = row["repos"]
        host["total"] += row["repos"]
    return sorted(found.values(), key=lambda host: (done(host) - host["total"], host["host"]))


def done(host: Row) -> int:
    """Repos of a host that are in an end state."""
    return int(host.get("sync", 0) + host.get("unavailable", 0))
