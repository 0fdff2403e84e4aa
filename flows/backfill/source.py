"""The source of the backfill flow: messages that name a repo → claims → downloads → works that the flow takes in turns.

Two consumers of one group: `repo_resync` is always read first, so that a desynced repo does not queue behind the backlog.
Messages are claimed only as there is room; from then on the database holds the work, and the offsets may move: no slow
repo holds back a partition. What cannot be read becomes a dead letter, and its offset moves when that is durable.
"""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec
from confluent_kafka import Message
from typing_extensions import override

from connectors.atproto.pds import PdsClient
from connectors.atproto.rate_budget import HostBudget
from connectors.atproto.spool import SpoolBudget
from connectors.http.client import open_session
from connectors.identity.resolver import Resolver
from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import Part
from connectors.kafka.producer import Out, dead_letter
from connectors.postgres.repo_queue import RepoQueue
from connectors.runtime import metrics, watchdog
from connectors.runtime.background_loop import Background, Handover
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.process import Health
from flows.backfill.task import Verdict, Work
from flows.backfill.worker import Attempts
from protocol.syntax import is_did
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings

GROUP = "backfill"
RESYNC, BACKLOG = "repo_resync", "repo_backfill"
CLAIM_BATCH = 500
TURN_CAR_BYTES = 1536 * 1024  # CARs in one batch: some 4,000 records
WORK_SHARE_BYTES = 384 * 1024  # what one turn of a larger work counts as
LARGE_WAITING = 2
FULL_SECONDS = 0.5
IDLE_WAIT_SECONDS = 0.2
STATEMENT_SECONDS = 60.0

log = logging.getLogger("backfill")

Positions = dict[Part, int]


class TaskFeed:
    """Messages of both topics, resync first. Used by one thread at a time, but for `commit`."""

    def __init__(self, settings: Settings) -> None:
        self._resync = _Lane(GroupConsumer(settings, GROUP, [RESYNC]))
        self._backlog = _Lane(GroupConsumer(settings, GROUP, [BACKLOG]))

    def take(self, resync_room: int, backlog_room: int) -> list[tuple[Message, bool]]:
        """(message, is it a resync) for as much as there is room for; waits a little where there is nothing."""
        urgent = self._resync.take(resync_room, 0.01)  # not longer: the backlog's places may be free again in a moment
        others = self._backlog.take(backlog_room - len(urgent), 0.0 if urgent else 0.1)
        return [(message, True) for message in urgent] + [(message, False) for message in others]

    def commit(self, positions: Positions) -> None:
        """Move the group's offsets."""
        self._resync.consumer.commit(positions)
        self._backlog.consumer.commit(positions)

    def close(self) -> None:
        """Leave the group."""
        self._resync.consumer.close()
        self._backlog.consumer.close()


class _Lane:
    """A consumer that is polled also while there is no room: a rebalance of its group waits for every member's poll."""

    def __init__(self, consumer: GroupConsumer) -> None:
        self.consumer = consumer
        self._kept: list[Message] = []
        self._held_back = False
        self._polled_at = time.monotonic()

    def take(self, room: int, wait_seconds: float) -> list[Message]:
        if room > 0 and self._kept:
            taken, self._kept = self._kept[:room], self._kept[room:]
            return taken
        now = time.monotonic()
        if room > 0:
            if self._held_back:
                self.consumer.resume(self.consumer.assigned)
                self._held_back = False
            self._polled_at = now
            return self.consumer.poll(min(CLAIM_BATCH, room), wait_seconds)
        # pausing throws away what was fetched ahead, so not for every moment without room
        if self._held_back or now > self._polled_at + FULL_SECONDS:
            self.consumer.pause(self.consumer.assigned)
            self._held_back = True
            self._kept += self.consumer.poll(1, 0.0)  # an assignment may come in here, not paused yet
        return []


class ClaimsPartition(CheckpointedPartition[Work | Out, Positions]):
    """Gives out works, and dead letters. `paused()`: why no new claims are made at present, or None."""

    def __init__(self, settings: Settings, health: Health, paused: Callable[[], str | None]) -> None:
        super().__init__(health)
        self._settings = settings
        self._paused = paused
        self._worker = f"{socket.gethostname()}/{os.getpid()}/{time.time_ns() & 0xFFFFFF:x}"
        self._feed = TaskFeed(settings)
        self._small: Handover[Work] = Handover(settings.inflight_bytes, lambda work: work.size + 1024)
        self._large: Handover[Work] = Handover(LARGE_WAITING)
        self._settled: deque[tuple[list[Out], Positions]] = deque()
        self._position: Positions = {}
        self._open: list[Work] = []
        self._heavy: Work | None = None
        self._parked: list[Work] = []
        self._parked_last = False
        self._stopping: asyncio.Event | None = None
        self._attempts: Attempts | None = None
        self._background = Background("claims", self._run)
        self._background.start()

    @override
    def poll(self) -> list[Work | Out]:
        self._background.check()
        items: list[Work | Out] = []
        while self._settled:
            letters, positions = self._settled.popleft()
            items += letters
            self._position = self._position | positions
        self._open = [work for work in self._open if not work.finished]
        self._choose()
        size = sum(min(work.size, WORK_SHARE_BYTES) + 1024 for work in self._open)
        while size < TURN_CAR_BYTES and (taken := self._small.take(1)):
            self._open += taken
            size += min(taken[0].size, WORK_SHARE_BYTES) + 1024
        heavy = [self._heavy] if self._heavy is not None else []
        return items + sorted(self._open + heavy, key=lambda work: work.served)

    def _choose(self) -> None:
        """One heavy work at a time goes on beside the others; those that turned out to be heavy wait as bytes."""
        for work in [one for one in self._open if one.heavy]:
            self._open.remove(work)
            work.park()
            self._parked.append(work)
        for work in [one for one in self._parked if one.fenced]:
            self._parked.remove(work)
            work.finish(None)
        if self._heavy is not None and not self._heavy.finished:
            return
        self._heavy = None
        for queue in (self._large.take, self._unparked) if self._parked_last else (self._unparked, self._large.take):
            if self._heavy is None and (taken := queue(1)):
                self._heavy, self._parked_last = taken[0], queue == self._unparked
                self._heavy.chosen = True

    def _unparked(self, count: int) -> list[Work]:
        taken, self._parked = self._parked[:count], self._parked[count:]
        return taken

    @override
    def position(self) -> Positions | None:
        return self._position or None

    @override
    def commit(self, position: Positions) -> None:
        self._feed.commit(position)

    @override
    def drain(self) -> None:
        self._background.call(lambda: self._stopping.set() if self._stopping else None)

    @override
    def drained(self) -> bool:
        return (
            self._background.finished
            and not (self._settled or self._open or self._parked or self._small or self._large)
            and (self._heavy is None or self._heavy.finished)
        )

    @override
    def close(self) -> None:
        self._background.cancel()
        self._feed.close()

    async def _run(self) -> None:
        settings = self._settings
        self._stopping = asyncio.Event()
        session = open_session(settings)
        resolver, budget, store = (
            Resolver(settings, session),
            HostBudget(settings),
            RepoQueue(settings, STATEMENT_SECONDS),
        )
        spools = SpoolBudget(settings.inflight_bytes, settings.spool_max_bytes)
        client = PdsClient(settings, session, budget, spools)
        attempts = Attempts(
            settings,
            store=store,
            resolver=resolver,
            budget=budget,
            client=client,
            tell=self._tell,
            small=self._small,
            large=self._large,
        )
        self._attempts = attempts
        try:
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(self._renew(attempts))
                await self._claim(group, attempts)
                await attempts.finish(settings.drain_seconds)
                renewing.cancel()
            back = await attempts.stored(lambda one: one.give_back(self._worker))
            log.info("stopped", extra={"given_back": back})
        finally:
            await budget.close()
            await resolver.close()
            await session.close()
            store.close()

    def _tell(self, work: Work, verdict: Verdict) -> None:
        """From the flow's thread to the attempt."""
        if self._attempts is not None:
            self._background.call(partial(self._attempts.verdict, work, verdict))

    async def _renew(self, attempts: Attempts) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            await attempts.renew(self._worker)

    async def _claim(self, group: asyncio.TaskGroup, attempts: Attempts) -> None:
        """Read and claim, as there is room, until the process is to stop."""
        assert self._stopping is not None  # noqa: S101  # _run
        while not self._stopping.is_set():
            why = self._paused()
            attempts.evict_overdue()
            resync, backlog = (0, 0) if why else (attempts.room(resync=True), attempts.room(resync=False))
            attempts.changed.clear()
            with watchdog.chore("reading of tasks"):  # in a thread: its hang would not stop this loop
                messages = await asyncio.to_thread(self._feed.take, resync, backlog)
            if messages:
                await self._claim_messages(group, attempts, messages)
            elif resync <= 0 and not why:
                await _wait(attempts.changed)
            elif why:
                await _wait(self._stopping)
            if why:
                self.health.report("paused", why)
            else:
                self.health.report("working" if len(attempts) else "idle")

    async def _claim_messages(
        self, group: asyncio.TaskGroup, attempts: Attempts, messages: list[tuple[Message, bool]]
    ) -> None:
        tasks: dict[tuple[str, int], tuple[wire.RepoTask, bool]] = {}
        letters: list[Out] = []
        positions: Positions = {}
        for message, resync in messages:
            task = _task(message, self._settings.topic_prefix)
            if isinstance(task, Out):
                letters.append(task)
            else:
                tasks[task.did, task.attempt] = task, resync
            part = str(message.topic()), int(message.partition() or 0)
            positions[part] = max(positions.get(part, 0), int(message.offset() or 0) + 1)
        claims = await attempts.stored(lambda store: store.claim([task for task, _ in tasks.values()], self._worker))
        metrics.CLAIMS.labels("claimed").inc(len(claims))
        dropped = len(messages) - len(letters) - len(claims)
        if dropped:
            metrics.CLAIMS.labels("dropped").inc(dropped)
            metrics.DROPPED.labels("backfill", "not_claimable").inc(dropped)
        for claim in claims:
            attempts.start(group, claim, resync=tasks[claim.did, claim.attempt - 1][1])
        self._settled.append((letters, positions))


async def _wait(event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(IDLE_WAIT_SECONDS):
            await event.wait()
    except TimeoutError:
        pass


def _task(message: Message, prefix: str) -> wire.RepoTask | Out:
    """The task of a message, or its dead letter: without its DID and attempt there is nothing to look for (C3)."""
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
