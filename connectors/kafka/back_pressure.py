"""Back-pressure by high-water marks: a producer pauses while its consumers are too far behind (B7).

`HighWater(settings, topic, group)` reads the group's committed offsets every two seconds in a thread, less often while nothing is
written to the topic. `.paused` is None, or the
reason with its figures. Nothing is dropped: the source stops reading its bounded queue, which fills, and then its socket is no
longer read. A pause ends below three quarters of the mark (hysteresis).

For work topics the mark is `kafka_high_water_messages` of lag. For the live topic it is an oldest unprocessed message that has
used half of the topic's retention: the relay keeps its events for a shorter time, so the live stream pauses as late as possible.
With several shards it pauses when all of them are so far behind: one that does not answer must not stop the others. What retention
removes before that one answers is a gap, which the next listing resolves.
"""

import time
from contextlib import suppress

from confluent_kafka.admin import OffsetSpec

from connectors.kafka.log import LogUnavailable, Part
from connectors.kafka.offsets import NO_OFFSET, Offsets
from connectors.runtime import work
from connectors.runtime.worker_thread import WorkerThread
from schemas.settings import Settings
from schemas.shard_ranges import shard_ranges
from schemas.topics import FIREHOSE_LIVE

CHECK_SECONDS = 2.0
QUIET_FACTOR = 4.0  # of the interval, after a check that found no new message
RESUME_SHARE = 0.75
LIVE_TOPIC = FIREHOSE_LIVE


class HighWater:
    """Watches the lag of one group on one topic. Call `start` once; it ends with the process or with `stop`."""

    def __init__(self, settings: Settings, topic: str, group: str, *, check_seconds: float = CHECK_SECONDS) -> None:
        self._settings = settings
        self._topic = topic
        self._group = group
        self._check_seconds = check_seconds
        self._offsets = Offsets(settings)
        self._retention: float | None = None
        self._paused: str | None = None
        self._parts: list[Part] = []
        self._ends: dict[Part, int] = {}
        self._all_read = False
        self._worker = WorkerThread(f"high-water-{topic}", self._run)
        self.start = self._worker.start
        self.stop = self._worker.stop

    @property
    def paused(self) -> str | None:
        """Why the producer must pause, or None; None before the first check. Raises RuntimeError if the thread failed (B8)."""
        if self._worker.error is not None:
            raise RuntimeError(f"the lag check of {self._topic} failed") from self._worker.error
        return self._paused

    def _run(self) -> None:
        try:
            while not self._worker.stopping:
                before, paused = self._ends, self._paused
                with suppress(
                    LogUnavailable
                ):  # keep the last result; the producer itself reports an unavailable broker
                    self._paused = self._check()
                if paused and self._paused is None:
                    work.ring()
                quiet = self._paused is None and before == self._ends
                self._worker.wait(self._check_seconds * (QUIET_FACTOR if quiet else 1.0))
        finally:
            self._offsets.close()

    def _check(self) -> str | None:
        """The reason to pause, or None. Raises LogUnavailable."""
        parts = self._parts = self._parts or self._offsets.parts([self._topic])
        ends = self._offsets.ends(parts)
        if self._all_read and ends == self._ends:
            return None  # one request a check at rest
        starts = self._offsets.starts(parts)
        committed = self._offsets.committed(self._group, parts)
        positions = {part: max(committed.get(part, 0), starts[part]) for part in parts}
        self._ends = ends
        lag = sum(max(0, ends[part] - positions[part]) for part in parts)
        self._all_read = lag == 0
        share = 1.0 if self._paused is None else RESUME_SHARE
        topic, group = self._settings.topic(self._topic), self._settings.group(self._group)
        if self._topic == LIVE_TOPIC:
            mark = self._retention_seconds() * self._settings.tuning.live_high_water_fraction
            over = lag > 0 and mark < float("inf") and self._all_older_than(mark * share, positions, ends)
            why = f"{group} has {lag:,} messages of {topic} to process, the oldest over {_span(mark)} old"
        else:
            high = self._settings.tuning.kafka_high_water_messages
            over = lag > high * share
            why = f"{group} is {lag:,} messages behind on {topic}; the limit is {high:,}"
        return why if over else None

    def _all_older_than(self, seconds: float, positions: dict[Part, int], ends: dict[Part, int]) -> bool:
        """Whether each shard has an unprocessed message older than `seconds`: its offset is below the first younger message's."""
        moment = int((time.time() - seconds) * 1000)
        younger = self._offsets.find(positions, OffsetSpec.for_timestamp(moment))
        late = {
            part[1]
            for part, first in younger.items()
            if positions[part] < (ends[part] if first == NO_OFFSET else first)
        }
        spans = [range(one.first, one.last + 1) for one in shard_ranges(self._settings.shards)]
        return all(late.intersection(span) for span in spans) if spans else bool(late)

    def _retention_seconds(self) -> float:
        if self._retention is None:
            self._retention = self._offsets.retention([self._topic]).get(self._topic, float("inf"))
        return self._retention


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"
