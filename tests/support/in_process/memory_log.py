"""A log in memory, with the part of a producer and of a consumer group that the flows use."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.kafka.producer import Delivered, Out
from steps.partitioner import partition_of

PARTITIONS = 4

Positions = dict[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class LogMessage:
    """Accessors as those of confluent_kafka's Message."""

    at: tuple[str, int, int]
    name: str
    payload: bytes

    def topic(self) -> str:
        return self.at[0]

    def partition(self) -> int:
        return self.at[1]

    def offset(self) -> int:
        return self.at[2]

    def key(self) -> bytes:
        return self.name.encode()

    def value(self) -> bytes:
        return self.payload


class MemoryLog:
    """Topics of four partitions, made with their first message."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], list[LogMessage]] = defaultdict(list)

    def send(self, messages: Sequence[Out], places_of: Collection[int] = ()) -> dict[int, Delivered]:
        """As LogProducer."""
        found = {}
        for index, message in enumerate(messages):
            part = message.topic, partition_of(message.key, PARTITIONS)
            offset = len(self._parts[part])
            self._parts[part].append(LogMessage((*part, offset), message.key, message.value))
            if index in places_of:
                found[index] = Delivered(part[1], offset)
        return found

    def read(self, topic: str, after: Positions | None = None) -> list[LogMessage]:
        """The messages of a topic from these positions on, partition by partition."""
        starts = after or {}
        parts = [(topic, part) for part in range(PARTITIONS)]
        return [message for part in parts for message in self._parts[part][starts.get(part, 0) :]]

    def ends(self, topic: str) -> Positions:
        """The next offset of each partition that has messages."""
        return {part: len(kept) for part, kept in self._parts.items() if part[0] == topic and kept}


class MemoryFeed:
    """As the backfill's LogFeed: both topics of one group. `committed` outlives it, as a group's offsets outlive a member."""

    def __init__(self, log: MemoryLog, topics: tuple[str, str], committed: Positions) -> None:
        self._log = log
        self._topics = topics
        self._position = dict(committed)
        self.committed = committed

    async def take(self, resync_room: int, backlog_room: int) -> list[tuple[Any, bool]]:
        urgent = self._next(self._topics[0], resync_room)
        others = self._next(self._topics[1], backlog_room - len(urgent))
        await asyncio.sleep(0 if urgent or others else 0.1)
        return [(message, True) for message in urgent] + [(message, False) for message in others]

    def _next(self, topic: str, room: int) -> list[LogMessage]:
        taken = self._log.read(topic, self._position)[: max(0, room)]
        for message in taken:
            self._position[topic, message.partition()] = message.offset() + 1
        return taken

    def commit(self, positions: Positions) -> None:
        self.committed |= positions

    def close(self) -> None:
        pass


class MemoryPressure:
    """As HighWater: paused while a group is more than `mark` messages behind on a topic. `committed`: the group's positions."""

    def __init__(self, log: MemoryLog, topic: str, committed: Positions, mark: int) -> None:
        self._log = log
        self._topic = topic
        self._committed = committed
        self._mark = mark

    @property
    def paused(self) -> str | None:
        ends = self._log.ends(self._topic)
        lag = sum(end - self._committed.get(part, 0) for part, end in ends.items())
        return f"{lag} messages behind on {self._topic}" if lag > self._mark else None

    def stop(self, seconds: float = 0.0) -> None:
        pass
