"""Metrics of the whole mirror: `Gauges` reads the database and the log regularly and sets the gauges.

The queries run in a thread of their own, so a slow one never delays the scheduler. Each has a statement timeout, and a cost that
does not grow with the number of repos. A query that fails is counted and logged, and its gauges keep their last value; any other
error ends the thread and is raised by `worker.check()`. Every control process exports these gauges; alerts use the maximum.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from connectors.kafka.log import LogUnavailable
from connectors.kafka.offsets import GROUP_TOPICS
from connectors.postgres.connection import dict_database
from connectors.postgres.shards import with_main
from connectors.runtime import metrics
from connectors.runtime.errors import one_line
from connectors.runtime.worker_thread import WorkerThread
from control.status import phases
from control.tasks.lag_age import oldest_unsettled
from control.tasks.shared_offsets import SharedOffsets
from schemas.settings import Settings
from schemas.sql import Statement, queries

SQL = queries("gauges")
STATUSES = ("pending", "running", "paused", "paused_quota_limit", "retry", "completed", "failed", "cancelled")
REFRESH_SECONDS = 10.0
HEAVY_SECONDS = 60.0
STATEMENT_SECONDS = 20
SAMPLED_ROWS = 200_000
TOP_HOSTS = 10

logger = logging.getLogger("control")


class Gauges:
    """Sets the gauges from database and log. Connects on first use."""

    def __init__(self, settings: Settings, offsets: SharedOffsets | None = None) -> None:
        self._settings = settings
        self._offsets = offsets or SharedOffsets(settings)
        options = f"-c statement_timeout={STATEMENT_SECONDS}s"
        self._connection, self._shards = with_main(
            settings, lambda one: dict_database(one, "sluice gauges", connect_timeout=5, options=options)
        )
        self._failing: set[str] = set()
        self.worker = WorkerThread("gauges", self._run)

    def refresh(self, *, heavy: bool) -> None:
        """One round. `heavy`: also the queries that read samples, the log and sizes."""
        groups: list[Callable[[], None]] = [self._repos, self._jobs, self._hosts, self._left_over, self._audit]
        if heavy:
            groups += [self._hosts_with_work, self._handles, self._sizes, self._ages]
        for group in groups:
            name = group.__name__.strip("_")
            try:
                group()
            except (psycopg.Error, LogUnavailable) as err:
                metrics.QUERIES_FAILED.labels(name).inc()
                if name not in self._failing:
                    logger.warning("gauges are out of date", extra={"gauges": name, "error": one_line(err)})
                self._failing.add(name)
            else:
                self._failing.discard(name)

    def _run(self) -> None:
        heavy_at = 0.0
        while not self.worker.stopping:
            heavy = time.monotonic() >= heavy_at
            self.refresh(heavy=heavy)
            if heavy:
                heavy_at = time.monotonic() + HEAVY_SECONDS
            self.worker.wait(REFRESH_SECONDS)

    def _rows(self, name: str, **values: Any) -> list[DictRow]:
        return self._connection().execute(SQL[name], values or None).fetchall()

    def _of_shards(self, statement: Statement, **values: Any) -> list[DictRow]:
        """Rows about repos, of the shards that answer."""
        return list(chain(*self._shards.each(lambda shard: shard().execute(statement, values or None).fetchall())))

    def _repos(self) -> None:
        try:
            found = phases(self._shards)
        finally:
            for name in self._shards.names if self._settings.shards else ():
                metrics.SHARD_DOWN.labels(name).set(float(name in self._shards.silent()))
        for phase, count in found.items():
            metrics.REPOS.labels(phase).set(count)
        near = self._of_shards(SQL["near_last"], count=self._settings.backfill_max_attempts - 1)
        metrics.REPOS_NEAR_LAST.set(sum(row["count"] for row in near))
        metrics.REPOS_STUCK.set(sum(row["count"] for row in self._of_shards(SQL["stuck"])))

    def _jobs(self) -> None:
        found = {row["status"]: row for row in self._rows("jobs", count=self._settings.backfill_max_attempts - 1)}
        for status in STATUSES:
            metrics.JOBS.labels(status).set(found[status]["count"] if status in found else 0)
        metrics.JOBS_NEAR_LAST.set(sum(row["near_last"] for row in found.values()))
        running = found.get("running")
        metrics.JOB_STILL.set(running["still"] if running else 0)
        metrics.JOB_RUNNING.set((running["running"] or 0) if running else 0)

    def _hosts(self) -> None:
        (row,) = self._rows("hosts")
        for state in ("known", "failing", "paused"):
            metrics.HOSTS.labels(state).set(row[state])
        metrics.PAUSE_LEFT.labels("host").set(row["pause_left"])

    def _left_over(self) -> None:
        (letters,) = self._rows("letters")
        metrics.LETTERS_OPEN.set(letters["count"])
        (skipped,) = self._rows("skipped")
        metrics.SKIPPED_OPEN.set(skipped["count"])
        metrics.SKIPPED_AGE.set(skipped["age"])
        (gaps,) = self._rows("gaps")
        metrics.GAPS_OPEN.set(gaps["count"])
        # not the cursors of single PDSes: there is no limit to their number
        upstreams = [*self._settings.relays, *self._settings.labelers]
        for row in self._rows("cursors", upstreams=upstreams):
            metrics.CURSOR_AGE.labels(row["flow"], row["upstream"]).set(row["age"])

    def _audit(self) -> None:
        if rows := self._of_shards(SQL["audit"]):
            metrics.AUDIT_FINDINGS.set(sum(row["count"] for row in rows))
            metrics.AUDIT_TIME.set(min(row["time"] for row in rows))

    def _handles(self) -> None:
        (found,) = self._connection().execute(queries("control")["handles"]).fetchall()
        for state, count in found.items():
            metrics.HANDLES.labels(state).set(count)
        (late,) = self._rows("handles_late")
        metrics.HANDLES_LATE.set(late["seconds"])

    def _hosts_with_work(self) -> None:
        found = self._shards.each(lambda shard: hosts_with_work(shard(), TOP_HOSTS))
        metrics.HOST_REPOS.clear()  # removes hosts no longer among the first
        for row in chain(*found):
            metrics.HOST_REPOS.labels(row["host"], row["phase"]).inc(row["repos"])

    def _sizes(self) -> None:
        metrics.DATABASE_BYTES.set(sum(row["bytes"] for row in self._of_shards(SQL["size"])))
        rows: Counter[str] = Counter()
        for table in self._of_shards(queries("control")["rows_estimated"]):
            rows[table["relname"]] += table["rows"]
        for name, count in rows.items():
            metrics.ESTIMATED_ROWS.labels(name).set(count)

    def _ages(self) -> None:
        lags = self._offsets.lags(self._connection())
        for (group, topic), age in oldest_unsettled(self._settings, lags).items():
            metrics.OLDEST_UNSETTLED.labels(group, topic).set(age)
        with self._offsets.use() as offsets:
            kept = offsets.retention(topic for topics in GROUP_TOPICS.values() for topic in topics)
        for topic, seconds in kept.items():
            metrics.RETENTION.labels(topic).set(seconds)


def hosts_with_work(db: psycopg.Connection[Any], limit: int) -> list[DictRow]:
    """Rows (host, phase, repos) of the PDSes with most unfinished repos; from a sample above `SAMPLED_ROWS` repos."""
    cursor = db.cursor(row_factory=dict_row)
    row = cursor.execute(queries("control")["repos_estimated"]).fetchone()
    total = max(1, int(row["count"]) if row else 1)
    values = {"percent": min(100.0, 100.0 * SAMPLED_ROWS / total), "limit": limit}
    return cursor.execute(SQL["hosts_with_work"], values).fetchall()
