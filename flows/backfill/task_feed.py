"""Messages that name a repo to fetch, from two topics of one consumer group.

`repo_resync` is always read first, so that a desynced repo does not queue behind the backlog.
"""

import asyncio
import time
from typing import Protocol

import msgspec
from confluent_kafka import Message

from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import Part
from connectors.kafka.producer import Out, dead_letter
from connectors.runtime import metrics, watchdog
from protocol.syntax import is_did
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings
from schemas.topics import REPO_BACKFILL, REPO_RESYNC

GROUP = "backfill"
RESYNC, BACKLOG = REPO_RESYNC, REPO_BACKFILL
CLAIM_BATCH = 500
FULL_SECONDS = 0.5

Positions = dict[Part, int]


class TaskFeed(Protocol):
    """Messages of both topics. `take` is for the event loop, `commit` and `close` for the flow's thread."""

    async def take(self, resync_room: int, backlog_room: int) -> list[tuple[Message, bool]]:
        """Up to that many messages of each topic, as (message, is a resync). Waits for 0.1 s if there are none."""

    def commit(self, positions: Positions) -> None:
        """Move the group's offsets."""

    def close(self) -> None:
        """Leave the group."""


class LogFeed:
    """The TaskFeed of the log. The consumer's poll blocks, so it runs in a thread, beside which `commit` may be called."""

    def __init__(self, settings: Settings) -> None:
        self._resync = _PausableConsumer(GroupConsumer(settings, GROUP, [RESYNC]))
        self._backlog = _PausableConsumer(GroupConsumer(settings, GROUP, [BACKLOG]))

    async def take(self, resync_room: int, backlog_room: int) -> list[tuple[Message, bool]]:
        with watchdog.watched_task("reading of tasks"):  # in a thread, which the loop's own watchdog does not cover
            return await asyncio.to_thread(self._take, resync_room, backlog_room)

    def _take(self, resync_room: int, backlog_room: int) -> list[tuple[Message, bool]]:
        urgent = self._resync.take(resync_room, 0.01)  # short: a slot for the backlog may become free meanwhile
        others = self._backlog.take(backlog_room - len(urgent), 0.0 if urgent else 0.1)
        return [(message, True) for message in urgent] + [(message, False) for message in others]

    def commit(self, positions: Positions) -> None:
        self._resync.consumer.commit(positions)
        self._backlog.consumer.commit(positions)

    def close(self) -> None:
        self._resync.consumer.close()
        self._backlog.consumer.close()


class _PausableConsumer:
    """A consumer that is also polled while there is no room: a rebalance needs a poll from every member of the group."""

    def __init__(self, consumer: GroupConsumer) -> None:
        self.consumer = consumer
        self._kept: list[Message] = []
        self._paused = False
        self._polled_at = time.monotonic()

    def take(self, room: int, wait_seconds: float) -> list[Message]:
        if room > 0 and self._kept:
            taken, self._kept = self._kept[:room], self._kept[room:]
            return taken
        now = time.monotonic()
        if room > 0:
            if self._paused:
                self.consumer.resume(self.consumer.assigned)
                self._paused = False
            self._polled_at = now
            return self.consumer.poll(min(CLAIM_BATCH, room), wait_seconds)
        # pausing discards prefetched messages, so pause only after FULL_SECONDS without room
        if self._paused or now > self._polled_at + FULL_SECONDS:
            self.consumer.pause(self.consumer.assigned)
            self._paused = True
            self._kept += self.consumer.poll(1, 0.0)  # a partition assigned by this poll is not paused yet
        return []


def read_task(message: Message, prefix: str) -> wire.RepoTask | Out:
    """The task of a message; a dead letter if it has no valid DID and attempt (C3). `prefix`: of the topic names."""
    payload = message.value() or b""
    try:
        task = wire.decode_task(payload)
        error = "" if is_did(task.did) else f"not a DID: {task.did[:200]}"
    except msgspec.DecodeError as err:
        task, error = None, str(err)
    if task is not None and not error:
        return task
    metrics.DEAD_LETTERS.labels("backfill", "bad_task").inc()
    topic = str(message.topic()).removeprefix(prefix)
    at = int(message.partition() or 0), int(message.offset() or 0)
    return dead_letter(topic, DeadReason.BAD_TASK, error, payload, at=at)
