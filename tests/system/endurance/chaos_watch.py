"""Watches a mirror during a chaos run from beside it: how long it stood still, and how long each killed process was away."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import psycopg
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tests.support.whole_mirror import SHORT, Mirror
from tests.system.endurance.chaos_monkey import Monkey

LOOK_SECONDS = 0.5
TOPICS = ("firehose_backfill", "firehose_live", "label_live")
PARTS = SHORT["kafka_partitions"]
MOVED = "select coalesce(sum(next), 0) from sluice.stream_offset"


@dataclass(frozen=True, slots=True)
class Stall:
    """The index's positions did not move for so long while it had work or nobody could tell; `began` in seconds since the
    start, and what its processes said."""

    seconds: float
    began: float
    said: str = ""


@dataclass(slots=True)
class Watch:
    """A thread that looks twice a second. `database` and `log` are the addresses behind the proxies: it sees through faults."""

    mirror: Mirror
    monkey: Monkey
    database: str
    log: str
    stalls: list[Stall] = field(default_factory=list)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    settled: int = 0
    error: BaseException | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _pids: dict[str, int] = field(default_factory=dict)
    topics: list[str] = field(init=False)
    _admin: AdminClient = field(init=False)

    def __post_init__(self) -> None:
        self.topics = [self.mirror.settings["kafka_topic_prefix"] + name for name in TOPICS]
        self._admin = AdminClient({"bootstrap.servers": self.log, "log_level": 0})

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when it has ended; raises what it died of."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(30)
        if self.error is not None:
            raise self.error

    @property
    def longest(self) -> Stall:
        return max(self.stalls, key=lambda stall: stall.seconds, default=Stall(0.0, 0.0))

    def _run(self) -> None:
        try:
            begun = moved_at = time.monotonic()
            said: list[str] = []
            while not self._ended.wait(LOOK_SECONDS):
                now, settled = time.monotonic(), self._look()
                self._recoveries(now)
                if settled == self.settled:
                    if self._idle(settled):
                        moved_at = now
                    elif int(now - moved_at) % 5 == 4 and len(said) < 60:
                        said.append(f"+{now - moved_at:.0f} s {self._said()}")
                    continue
                if now - moved_at > 5:
                    self.stalls.append(Stall(now - moved_at, moved_at - begun, "; ".join(said)))
                self.settled, moved_at, said = settled, now, []
        except BaseException as err:  # a thread must not die in silence
            self.error = err

    def _look(self) -> int:
        try:
            with psycopg.connect(self.database, autocommit=True, connect_timeout=2) as db:
                row = db.execute(MOVED).fetchone()
                return int(row[0]) if row else 0
        except psycopg.Error:
            return self.settled  # it is down: nothing moves

    def _idle(self, settled: int) -> bool:
        """Everything in the log is settled. A log that does not answer may hold work."""
        try:
            asked = {TopicPartition(topic, part): OffsetSpec.latest() for topic in self.topics for part in range(PARTS)}
            found = self._admin.list_offsets(asked, request_timeout=2.0).values()
            return sum(one.result(3).offset for one in found) <= settled
        except (KafkaException, TimeoutError):
            return False

    def _recoveries(self, now: float) -> None:
        """A killed process is back when its successor is ready; a server, when it runs."""
        waiting = dict(self.monkey.ended)
        if not waiting:
            return
        seen = self.mirror.sightings(with_metrics=False)
        for name, at in waiting.items():
            server = self.monkey.servers.get(name)
            back = getattr(server, "running", False) if server else self._back(name, seen)
            if back:
                self.recoveries.setdefault(name, []).append(now - at)
                self.monkey.ended.pop(name, None)
        self._pids |= {name: one.pid for name, one in seen.items() if name not in waiting}

    def _back(self, name: str, seen: dict) -> bool:
        one = seen.get(name)
        return one is not None and one.ready and one.pid != self._pids.get(name)

    def _said(self) -> str:
        seen = self.mirror.sightings(with_metrics=False).values()
        return ", ".join(f"{one.name} {one.state} {one.why}".strip() for one in seen if one.kind == "index")
