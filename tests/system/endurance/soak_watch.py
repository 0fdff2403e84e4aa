"""What a soak measures at the end of each simulated day, and whether any of it grows without bound."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psutil
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from connectors.identity.handle_checks import QUERIES_AT_ONCE
from connectors.identity.resolver import REQUESTS_AT_ONCE
from control.process_status import ProcessStatus
from tests.support.whole_mirror import Mirror

TOPICS = ("repo_backfill", "repo_resync", "firehose_live", "firehose_backfill", "label_live", "dead_letter")
OF_THE_NETWORK = {"repo", "record", "handle", "identity", "label", "appview_record", "buffered_event"}
"""Tables with a row per account, record or label; they are compared with the network itself."""

Measures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much more the last days may show than the early ones: times `factor`, plus `extra`."""

    factor: float
    extra: float


ALLOWED = {
    "rows": Allowance(1.3, 15),
    "series": Allowance(1.05, 10),
    "rss_mb": Allowance(1.3, 30),
    "fds": Allowance(1.2, 15),
    "peers": Allowance(1.0, REQUESTS_AT_ONCE + QUERIES_AT_ONCE),  # a batch of handle checks: to the directory, and DNS
    "threads": Allowance(1.2, 5),
    "files": Allowance(1.2, 10),
}


@dataclass(slots=True)
class Retention:
    """Removes what the broker's retention would: messages older than `days` simulated days, in every topic."""

    bootstrap: str
    prefix: str
    partitions: int
    days: int
    removed: int = 0
    _ends: list[dict[TopicPartition, int]] = field(default_factory=list)

    def day(self) -> None:
        """Note where the topics end today; remove what was there `days` days ago."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        parts = [TopicPartition(self.prefix + topic, part) for topic in TOPICS for part in range(self.partitions)]
        asked = admin.list_offsets({part: OffsetSpec.latest() for part in parts}, request_timeout=20.0)
        self._ends.append({part: future.result(30).offset for part, future in asked.items()})
        if len(self._ends) > self.days:
            old = self._ends.pop(0)
            wanted = [TopicPartition(part.topic, part.partition, end) for part, end in old.items() if end > 0]
            for future in admin.delete_records(wanted).values():
                future.result(30)
            self.removed = sum(old.values())


def measure(mirror: Mirror) -> Measures:
    """Name → value: rows of every table, and of every process its memory, descriptors, threads and series of metrics."""
    found: Measures = {}
    tables = mirror.query("select table_name from information_schema.tables where table_schema = 'sluice'")
    kinds = mirror.query("select table_name from information_schema.views where table_schema = 'sluice'")
    for name in sorted({name for (name,) in tables} - {name for (name,) in kinds} - OF_THE_NETWORK):
        found[f"rows {name}"] = mirror.query(f"select count(*) from sluice.{name}")[0][0]
    servers = {urlsplit(mirror.database).port, urlsplit(f"//{mirror.registry.bootstrap}").port}
    for name, seen in mirror.sightings().items():
        found |= _of_process(name, seen, servers)
    found["files data folder"] = sum(1 for path in mirror.data_dir.rglob("*") if path.is_file())
    return found


def _of_process(name: str, seen: ProcessStatus, servers: set[int | None]) -> Measures:
    try:
        process = psutil.Process(seen.pid)
        own: dict[str, Any] = {
            "rss_mb": process.memory_info().rss / 2**20,
            "threads": process.num_threads(),
            **_descriptors(process, servers),
        }
    except (psutil.NoSuchProcess, FileNotFoundError):
        return {}  # killed a moment ago
    if seen.metrics:
        own["series"] = sum(len(samples) for samples in seen.metrics.values())
    return {f"{what} {name}": value for what, value in own.items()}


def _descriptors(process: psutil.Process, servers: set[int | None]) -> Measures:
    """`fds`: files, pipes, and sockets to the broker and the database. `peers`: other sockets, which come and go with requests."""
    links = []
    for fd in os.listdir(f"/proc/{process.pid}/fd"):
        with suppress(OSError):  # closed a moment ago
            links.append(os.readlink(f"/proc/{process.pid}/fd/{fd}"))
    sockets = process.net_connections("inet")
    kept = sum(bool(one.raddr) and one.raddr.port in servers for one in sockets)
    return {"fds": kept + sum(not link.startswith("socket:") for link in links), "peers": len(sockets) - kept}


def growing(days: list[Measures]) -> list[str]:
    """What the last quarter of the days shows above the second quarter and its allowance; the first is a warm-up."""
    quarter = len(days) // 4
    before, last = days[quarter : 2 * quarter], days[-quarter:]
    found = []
    for name in sorted({name for day in last for name in day}):
        early, late = _highest(before, name), _highest(last, name)
        allowed = ALLOWED[name.split()[0]]
        if early is not None and late is not None and late > early * allowed.factor + allowed.extra:
            found.append(f"{name}: {early:.0f} -> {late:.0f}")
    return found


def _highest(days: list[Measures], name: str) -> float | None:
    return max((day[name] for day in days if name in day), default=None)
