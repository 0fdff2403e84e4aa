"""The status of the mirror, from database, broker and processes: `MirrorStatus`, for `sluice status`, `sluice up` and the API.

Counts stay cheap on large tables: buffered events are counted up to 100,000, records and labels are PostgreSQL's running estimates, and
above a million repos `sync` is the estimate minus all other phases. Raises psycopg.Error and LogUnavailable.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import chain
from typing import Any, Protocol

import psycopg
from psycopg.abc import Params
from psycopg.rows import DictRow, dict_row

from connectors.kafka.offsets import Offsets, PartitionLag
from connectors.postgres.connection import STATEMENT_SECONDS, Database, dict_database
from connectors.postgres.shards import Shards, with_main
from control.process_status import ProcessStatus
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import FIREHOSE_LIVE

SQL = queries("control")
EXACT_REPOS = 1_000_000
HOSTS_SHOWN = 20
JOBS_SHOWN = 100
RATE_SECONDS = 60.0
BUFFERED_COUNTED = 100_000  # not estimated: an estimate for an empty table may be above 0
END_PHASES = ("sync", "unavailable", "failed", "excluded")
PHASES = ("pending", "backfill", *END_PHASES)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """Rows of tables are dicts of their columns; ages are in seconds."""

    repos: dict[str, int]
    retrying: int
    records: int
    labels: int
    buffered_events: int
    partition_lags: list[PartitionLag]
    failing_hosts: list[Row]
    failures: list[Row]
    cursors: list[Row]
    dead_letters: dict[str, int]
    jobs: list[Row]  # unfinished ones first, at most `JOBS_SHOWN`
    skipped_ranges: int
    stream_gaps: int
    shards_down: list[str] = field(default_factory=list)  # do not answer: their figures are missing
    storms: dict[str, int] = field(default_factory=dict)  # held reason → repos not queued
    jobs_found: int = 0  # total number
    relays: list[str] = field(default_factory=list)  # from the settings
    processes: list[ProcessStatus] = field(default_factory=list)
    handles: Row = field(default_factory=dict)  # verified, unverified, due (at most 100,000)
    records_per_second: float | None = None
    events_per_second: float | None = None

    @property
    def lag(self) -> dict[tuple[str, str], int]:
        """(group, topic) → messages not processed yet."""
        total: Counter[tuple[str, str]] = Counter()
        for one in self.partition_lags:
            total[one.group, one.topic] += one.lag
        return dict(total)

    @property
    def events(self) -> int:
        """Live events ever written to the log."""
        return sum(one.end for one in self.partition_lags if one.topic == FIREHOSE_LIVE)

    @property
    def paused(self) -> list[str]:
        """Processes and hosts that are paused, and why."""
        processes = [f"{seen.name}: {seen.why}" for seen in self.processes if seen.state == "paused"]
        hosts = [
            f"{row['host']}: {row['pause_reason'] or 'paused'} for {row['paused_seconds']} s more"
            for row in self.failing_hosts
            if row["paused_seconds"]
        ]
        return processes + hosts

    def as_json(self) -> Row:
        page: Row = asdict(self)
        for one, row in zip(self.partition_lags, page["partition_lags"], strict=True):
            row.update(lag=one.lag, past_end=one.past_end, lost=one.lost)
        for process in page["processes"]:
            del process["metrics"]  # their labels cannot be JSON keys; `attention` covers them
        page["lag"] = {f"{group}/{topic}": lag for (group, topic), lag in self.lag.items()}
        page["paused"] = self.paused
        plain: Row = _plain(page)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.isoformat() if isinstance(value, datetime) else value


def rated(status: MirrorStatus, records: float, events: float, seconds: float) -> MirrorStatus:
    """The status with the rates since the totals `records` and `events` of some seconds ago."""
    if seconds <= 0:
        return status
    return replace(
        status,
        records_per_second=max(0.0, (status.records - records) / seconds),
        events_per_second=max(0.0, (status.events - events) / seconds),
    )


def buffered_count(status: MirrorStatus) -> str:
    """The number of buffered events; counted up to a limit."""
    return f"{status.buffered_events:,}{' or more' if status.buffered_events >= BUFFERED_COUNTED else ''}"


def rate_text(rate: float | None) -> str:
    """A rate in parentheses; '' where none is known."""
    return "" if rate is None else f" ({rate:.0f}/s)"


def phases(shards: Shards[Database[DictRow]]) -> dict[str, int]:
    """Phase → repos, of the shards that answer. Above a million on one, its `sync` is an estimate minus the other phases."""
    found = Counter(dict.fromkeys(PHASES, 0))
    for some in shards.answering(lambda shard: _phases(shard())):
        found.update(some)
    return dict(found)


def _phases(db: psycopg.Connection[Any]) -> dict[str, int]:
    cursor = db.cursor(row_factory=dict_row)
    found = dict.fromkeys(PHASES, 0)
    row = cursor.execute(SQL["repos_estimated"]).fetchone()
    total = int(row["count"]) if row else 0
    if total <= EXACT_REPOS:
        return found | {row["phase"]: row["count"] for row in cursor.execute(SQL["repos_by_phase"])}
    for row in cursor.execute(SQL["repos_moving"]):
        found[row["phase"]] += row["count"]
    found["sync"] = max(0, total - sum(found.values()))
    return found


class Lags(Protocol):
    """The part of Offsets that a Collector needs."""

    def lags(self, db: psycopg.Connection[Any]) -> list[PartitionLag]:
        """The lag of every group in each of its partitions."""


class Collector:
    """Collects the status, on one connection each to database and broker. Connects on first use."""

    def __init__(self, settings: Settings, lags: Lags | None = None) -> None:
        """`lags`: of the log; by default with clients of its own."""
        self._relays = settings.relays
        self._lags = lags or Offsets(settings)
        self._database, self._shards = with_main(
            settings, lambda one: dict_database(one, "sluice status", connect_timeout=5)
        )

    def collect(self, processes: list[ProcessStatus] | None = None) -> MirrorStatus:
        """The status of database and broker now, together with that of these processes."""
        jobs = self._rows("jobs", (JOBS_SHOWN,))
        found = jobs[0]["found"] if jobs else 0
        for job in jobs:
            del job["found"]
        estimated: Counter[str] = Counter()
        for row in self._of_shards("rows_estimated"):
            estimated[row["relname"]] += row["rows"]
        return MirrorStatus(
            repos=phases(self._shards),
            retrying=self._count("retrying_repos"),
            records=estimated["record"],
            labels=estimated["label"],
            buffered_events=self._count("buffered_events"),
            shards_down=self._shards.silent(),
            partition_lags=self.lags(),
            failing_hosts=self._rows("failing_hosts", (HOSTS_SHOWN,)),
            failures=self._of_shards("failed_repos"),
            cursors=self._rows("cursors"),
            dead_letters={row["state"]: row["count"] for row in self._rows("dead_letter_states")},
            jobs=jobs,
            jobs_found=found,
            skipped_ranges=self._rows("skipped_open")[0]["count"],
            stream_gaps=self._rows("gaps_open")[0]["count"],
            storms={row["reason"]: row["repos"] for row in self._rows("storms")},
            handles=self._rows("handles")[0],
            relays=list(self._relays),
            processes=processes or [],
        )

    def with_rates(self, processes: list[ProcessStatus] | None = None) -> MirrorStatus:
        """`collect`, with rates since the figures that control wrote within RATE_SECONDS; without figures they are None."""
        status = self.collect(processes)
        for row in self._rows("figures_before", {"longest": RATE_SECONDS}):
            return rated(status, row["figures"]["records"], row["figures"]["events"], row["seconds"])
        return status

    def lags(self) -> list[PartitionLag]:
        """The lag of every group in each of its partitions."""
        return self._lags.lags(self._database())

    def exact(self) -> tuple[int, int]:
        """Exact numbers of records and labels. Reads whole indexes."""
        return self._count("count_records", STATEMENT_SECONDS), self._count("count_labels", STATEMENT_SECONDS)

    def _rows(self, name: str, values: Params | None = None) -> list[DictRow]:
        return self._database().execute(SQL[name], values).fetchall()

    def _of_shards(self, name: str, seconds: float | None = None) -> list[DictRow]:
        """Rows about repos, of the shards that answer."""
        return list(chain(*self._shards.answering(lambda shard: shard().execute(SQL[name]).fetchall(), seconds)))

    def _count(self, name: str, seconds: float | None = None) -> int:
        return sum(int(row["count"]) for row in self._of_shards(name, seconds))

    def close(self) -> None:
        self._database.close()
        for shard in self._shards.all():
            shard.close()
