"""Messages that name a repo to fetch, from two topics of one consumer group.

`repo_resync` is always read first, so that a desynced repo does not queue behind the backlog.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

import msgspec
from confluent_kafka import Message

from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import Part
from connectors.kafka.producer import Out, dead_letter
from connectors.runtime import metrics, watchdog
from connectors.runtime.work import REST_SECONDS
from protocol.syntax import is_did
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings
from schemas.topics import REPO_BACKFILL, REPO_RESYNC

GROUP = "backfill"
RESYNC, BACKLOG = REPO_RESYNC, REPO_BACKFILL
CLAIM_BATCH = 500
FETCH_SECONDS = 5.0
FULL_SECONDS = 0.5
FULL_WAIT_SECONDS = 0.01

Positions = dict[Part, int]


class TaskFeed(Protocol):
    """Messages of both topics. `take` is for the event loop, `commit` and `close` for the flow's thread."""

    async def take(self, resync_room: int, backlog_room: int) -> list[tuple[Message, bool]]:
        """Up to that many messages of each topic, as (message, is a resync). Waits a moment if there are none."""

    def commit(self, positions: Positions) -> None:
        """Move the group's offsets."""

    def close(self) -> None:
        """Leave the group."""


class LogFeed:
    """The TaskFeed of the log. A consumer's poll blocks, so it runs in a thread, beside which `commit` may be called.

    Both polls run at the same time: a message of either topic ends the wait.
    """

    def __init__(self, settings: Settings) -> None:
        self._resync = _TopicReader(GroupConsumer(settings, GROUP, [RESYNC], fetch_seconds=FETCH_SECONDS))
        self._backlog = _TopicReader(GroupConsumer(settings, GROUP, [BACKLOG], fetch_seconds=FETCH_SECONDS))

    async def take(self, resync_room: int, backlog_room: int) -> list[tuple[Message, bool]]:
        if not (taken := self._take(resync_room, backlog_room)):
            polls = [self._resync.poll(resync_room), self._backlog.poll(backlog_room)]
            # short while a topic is full: room for it may appear meanwhile
            wait_seconds = REST_SECONDS if min(resync_room, backlog_room) > 0 else FULL_WAIT_SECONDS
            await asyncio.wait(polls, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
            taken = self._take(resync_room, backlog_room)
        return taken

    def _take(self, resync_room: int, backlog_room: int) -> list[tuple[Message, bool]]:
        urgent = self._resync.take(resync_room)
        others = self._backlog.take(backlog_room - len(urgent))
        return [(message, True) for message in urgent] + [(message, False) for message in others]

    def commit(self, positions: Positions) -> None:
        self._resync.consumer.commit_with_poll(positions)
        self._backlog.consumer.commit_with_poll(positions)

    def close(self) -> None:
        self._resync.consumer.close()
        self._backlog.consumer.close()


class _TopicReader:
    """A consumer that is also polled while there is no room: a rebalance needs a poll from every member of the group."""

    def __init__(self, consumer: GroupConsumer) -> None:
        self.consumer = consumer
        self._read: deque[Message] = deque()
        self._polling: asyncio.Task[None] | None = None
        self._paused = False
        self._polled_at = time.monotonic()

    def take(self, room: int) -> list[Message]:
        """Up to `room` messages that were read. Raises the error that ended the last poll."""
        if self._polling is not None and self._polling.done():
            self._polling.result()
            self._polling = None
        return [self._read.popleft() for _ in range(min(room, len(self._read)))]

    def poll(self, room: int) -> asyncio.Task[None]:
        """The running poll, or a new one."""
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll_watched(room))
        return self._polling

    async def _poll_watched(self, room: int) -> None:
        if room <= 0 and time.monotonic() < self._polled_at + FULL_SECONDS:
            await asyncio.sleep(FULL_WAIT_SECONDS)
            return
        with watchdog.watched_task("reading of tasks"):  # in a thread, which the loop's own watchdog does not cover
            await asyncio.to_thread(self._poll, room)

    def _poll(self, room: int) -> None:
        """Without room, the topic is paused. That discards prefetched messages, so not before FULL_SECONDS without room."""
        self._polled_at = time.monotonic()
        if room > 0:
            if self._paused:
                self.consumer.resume(self.consumer.assigned)
                self._paused = False
            self._read += self.consumer.poll(min(CLAIM_BATCH, room))
        else:
            self.consumer.pause(self.consumer.assigned)
            self._paused = True
            self._read += self.consumer.poll(1, 0.0)  # a partition assigned by this poll is not paused yet


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
