"""The source of the backfill flow: messages that name a repo → claims → pipelines → chunks of messages.

Messages are read and claimed as there is room for them. A claim is stored in the repo's row, so the offset may move at once
and a slow repo does not hold back its partition. A message that cannot be read becomes a dead letter, and its offset moves
when that is durable.
"""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable

from confluent_kafka import Message
from typing_extensions import override

from connectors.atproto.pds import PdsClient
from connectors.atproto.rate_budget import HostBudget
from connectors.atproto.spool import SpoolBudget
from connectors.identity.resolver import Resolver
from connectors.kafka.producer import Out
from connectors.postgres.sharded_queue import repo_queue
from connectors.runtime import metrics, work
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.health import Health
from connectors.runtime.loop_environment import LoopEnvironment
from flows.backfill.slices import TimeSlices
from flows.backfill.task import MessageChunk
from flows.backfill.task_feed import Positions, TaskFeed, read_task
from flows.backfill.worker import BackfillWorker
from schemas import wire
from schemas.settings import Settings

IDLE_WAIT_SECONDS = 0.2
STATEMENT_SECONDS = 60.0

log = logging.getLogger("backfill")


class BackfillSource(CheckpointedPartition[MessageChunk | Out, Positions]):
    """Emits chunks and dead letters. `paused()`: why no claims are made at present, or None."""

    def __init__(
        self,
        settings: Settings,
        health: Health,
        feed: TaskFeed,
        paused: Callable[[], str | None],
        environment: LoopEnvironment,
    ) -> None:
        super().__init__(health)
        self._settings = settings
        self._feed = feed
        self._paused = paused
        self._environment = environment
        self._worker_name = f"{socket.gethostname()}/{os.getpid()}/{time.time_ns() & 0xFFFFFF:x}"
        self._slices = TimeSlices()
        self._claimed: deque[tuple[list[Out], Positions]] = deque()
        self._position: Positions = {}
        self._stopping: asyncio.Event | None = None
        self._background = environment.background("claims", self._run)
        self._background.start()

    @override
    def poll(self) -> list[MessageChunk | Out]:
        self._background.check()
        items: list[MessageChunk | Out] = []
        while self._claimed:
            dead_letters, positions = self._claimed.popleft()
            items += dead_letters
            self._position = self._position | positions
        return items + self._slices.next_chunks()

    @override
    def busy(self) -> bool:
        """While a task is open: a step of its verification emits nothing, but the next one is due."""
        return self._slices.busy

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
        return self._background.finished and not self._claimed and self._slices.empty

    @override
    def close(self) -> None:
        self._background.cancel()
        self._feed.close()

    async def _run(self) -> None:
        """The loop's side: claims and their pipelines, until the process stops."""
        settings, clock = self._settings, self._environment.clock
        self._stopping = asyncio.Event()
        session = self._environment.session(settings)
        resolver, budget = Resolver(settings, session, clock=clock), HostBudget(settings, clock)
        queue = repo_queue(settings, STATEMENT_SECONDS)
        spools = SpoolBudget(settings.backfill_memory_bytes, settings.backfill_spool_bytes)
        worker = BackfillWorker(
            settings,
            queue=queue,
            resolver=resolver,
            budget=budget,
            client=PdsClient(settings, session, budget, spools, clock),
            small=self._slices.small,
            large=self._slices.large,
            clock=clock,
        )
        try:
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(self._renew(worker))
                await self._claim(group, worker, self._stopping)
                await worker.finish(settings.tuning.drain_seconds)
                renewing.cancel()
            released = await worker.queue.run(lambda rows: rows.release_all(self._worker_name))
            log.info("stopped", extra={"released": released})
        finally:
            await budget.close()
            await resolver.close()
            await session.close()
            queue.close()

    async def _renew(self, worker: BackfillWorker) -> None:
        while True:
            await asyncio.sleep(self._settings.tuning.lease_seconds / 3)
            await worker.renew(self._worker_name)

    async def _claim(self, group: asyncio.TaskGroup, worker: BackfillWorker, stopping: asyncio.Event) -> None:
        """Read and claim, as there is room, until the process stops."""
        while not stopping.is_set():
            why = self._paused()
            worker.evict_overdue()
            resync, backlog = (0, 0) if why else (worker.room(resync=True), worker.room(resync=False))
            worker.changed.clear()
            messages = await self._feed.take(resync, backlog)
            if messages:
                await self._claim_messages(group, worker, messages)
            elif resync <= 0 and not why:
                await _wait(worker.changed)
            elif why:
                await _wait(stopping)
            if why:
                self.health.report("paused", why)
            else:
                self.health.report("working" if len(worker) else "idle")

    async def _claim_messages(
        self, group: asyncio.TaskGroup, worker: BackfillWorker, messages: list[tuple[Message, bool]]
    ) -> None:
        tasks: dict[tuple[str, int], tuple[wire.RepoTask, bool]] = {}
        dead_letters: list[Out] = []
        positions: Positions = {}
        for message, resync in messages:
            task = read_task(message, self._settings.kafka_topic_prefix)
            if isinstance(task, Out):
                dead_letters.append(task)
            else:
                tasks[task.did, task.attempt] = task, resync
            part = str(message.topic()), int(message.partition() or 0)
            positions[part] = max(positions.get(part, 0), int(message.offset() or 0) + 1)
        wanted = [task for task, _ in tasks.values()]
        claims = await worker.queue.run(lambda rows: rows.claim(wanted, self._worker_name))
        metrics.CLAIMS.labels("claimed").inc(len(claims))
        dropped = len(messages) - len(dead_letters) - len(claims)
        if dropped:
            metrics.CLAIMS.labels("dropped").inc(dropped)
            metrics.DROPPED.labels("backfill", "not_claimable").inc(dropped)
        for claim in claims:
            worker.start(group, claim, resync=tasks[claim.did, claim.attempt - 1][1])
        self._claimed.append((dead_letters, positions))
        work.ring()


async def _wait(event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(IDLE_WAIT_SECONDS):
            await event.wait()
    except TimeoutError:
        pass
