"""What a soak measures at the end of each simulated day, and whether any of it grows without bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psutil
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from control.process_status import ProcessStatus
from tests.support.whole_mirror import Mirror

TOPICS = ("repo_backfill", "repo_resync", "firehose_live", "firehose_backfill", "label_live", "dead_letter")
OF_THE_NETWORK = {"repo", "record", "handle", "identity", "label", "appview_record", "held_event"}
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
    for name, seen in mirror.sightings().items():
        found |= _of_process(name, seen)
    found["files data folder"] = sum(1 for path in mirror.data_dir.rglob("*") if path.is_file())
    return found


def _of_process(name: str, seen: ProcessStatus) -> Measures:
    try:
        process = psutil.Process(seen.pid)
        own: dict[str, Any] = {
            "rss_mb": process.memory_info().rss / 2**20,
            "fds": process.num_fds(),
            "threads": process.num_threads(),
        }
    except psutil.NoSuchProcess:
        return {}  # killed a moment ago
    if seen.metrics:
        own["series"] = sum(len(samples) for samples in seen.metrics.values())
    return {f"{what} {name}": value for what, value in own.items()}


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
