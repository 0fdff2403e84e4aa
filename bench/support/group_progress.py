"""Progress of consumer groups: positions and ends of all their partitions, sampled several times a second in a thread.

Functions of samples: `stall` is the longest time without progress of a partition with lag, `rate` the messages settled per second.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from connectors.kafka.log import LogUnavailable, Part
from connectors.kafka.offsets import Offsets
from schemas.settings import Settings

SAMPLE_SECONDS = 0.15


@dataclass(frozen=True, slots=True)
class Sample:
    """Part → (position, end) at one moment (monotonic seconds)."""

    at: float
    parts: dict[Part, tuple[int, int]]

    def lag(self, topic: str) -> int:
        """Lag of a topic in messages."""
        return sum(max(0, end - at) for (name, _), (at, end) in self.parts.items() if name == topic)

    def settled(self, topic: str) -> int:
        """Sum of a topic's positions."""
        return sum(at for (name, _), (at, _) in self.parts.items() if name == topic)


class Pace:
    """Samples the groups of these settings from `start` until `stop`. No samples while the broker does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)
        self._died: BaseException | None = None

    def start(self) -> "Pace":
        """Start sampling."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop sampling. Raises the error that ended the thread."""
        self._ended.set()
        self._thread.join()
        if self._died is not None:
            raise self._died

    def between(self, begin: float, end: float) -> list[Sample]:
        """Samples of this period, and the one before it: a stall may have begun there."""
        chosen = [sample for sample in self._samples if sample.at <= end]
        first = max((n for n, sample in enumerate(chosen) if sample.at <= begin), default=0)
        return chosen[first:]

    @property
    def last(self) -> Sample:
        """The newest sample; an empty one before the first."""
        return self._samples[-1] if self._samples else Sample(time.monotonic(), {})

    def _run(self) -> None:
        try:
            positions = Offsets(self._settings)
            with psycopg.connect(self._settings.database, autocommit=True) as db:
                while not self._ended.wait(SAMPLE_SECONDS):
                    self._look(positions, db)
        except BaseException as err:  # raised in `stop`
            self._died = err

    def _look(self, positions: Offsets, db: psycopg.Connection[tuple[object, ...]]) -> None:
        try:
            standings = positions.lags(db)
        except LogUnavailable:
            return
        self._samples.append(
            Sample(time.monotonic(), {(one.topic, one.partition): (one.position, one.end) for one in standings})
        )


def stall(samples: Sequence[Sample], topic: str) -> float:
    """Longest time in seconds without progress of a partition of the topic that had lag."""
    longest, since = 0.0, dict[Part, tuple[int, float]]()
    for sample in samples:
        for part, (position, end) in sample.parts.items():
            if part[0] != topic:
                continue
            known = since.get(part)
            if known is None or known[0] != position or position >= end:
                if known is not None and position > known[0]:
                    longest = max(longest, sample.at - known[1])
                since[part] = (position, sample.at)
            else:
                longest = max(longest, sample.at - known[1])
    return longest


def rate(samples: Sequence[Sample], topic: str) -> float:
    """Messages of the topic settled per second."""
    seconds = samples[-1].at - samples[0].at
    return (samples[-1].settled(topic) - samples[0].settled(topic)) / seconds if seconds > 0 else 0.0


def recovery(samples: Sequence[Sample], topic: str, level: int) -> tuple[int, float | None]:
    """Highest lag of the topic, and the seconds from the first sample until it stayed at or below `level` (None: never)."""
    peak = max(sample.lag(topic) for sample in samples)
    above = [sample.at for sample in samples if sample.lag(topic) > level]
    if above and above[-1] == samples[-1].at:
        return peak, None
    return peak, (above[-1] - samples[0].at if above else 0.0)
