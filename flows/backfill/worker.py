"""The claims of this process: one pipeline (`pipeline.py`) per claim, admission, leases, fencing, shutdown.

A bounded number of pipelines fetch at the same time, and fewer per host, so that a slow host does not block others.
Resyncs start before the backlog and have a few fetch slots that the backlog cannot take. An unexpected error in a
pipeline ends the task group, and so the process (B8).
"""

import asyncio
import time
from collections.abc import Callable

from connectors.atproto.fetch_slots import FetchSlots
from connectors.atproto.pds import PdsClient
from connectors.atproto.rate_budget import HostBudget
from connectors.identity.resolver import Resolver
from connectors.postgres.repo_queue import Claim, RepoQueue
from connectors.runtime import metrics
from connectors.runtime.background_loop import Handover
from flows.backfill.async_queue import AsyncRepoQueue
from flows.backfill.pipeline import ClaimRun, RepoPipeline
from flows.backfill.task import SnapshotTask
from schemas.settings import Settings

MOST_IN_FLOW = 500  # tasks between download and outcome
QUEUED_PER_SLOT = 10  # claims per slot that may wait because their host is at its limit

Key = tuple[str, int]  # (DID, attempt)


class BackfillWorker:
    """The claims of this process, in one event loop. `small` and `large` take downloads to the flow."""

    def __init__(
        self,
        settings: Settings,
        *,
        queue: RepoQueue,
        resolver: Resolver,
        budget: HostBudget,
        client: PdsClient,
        small: Handover[SnapshotTask],
        large: Handover[SnapshotTask],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = AsyncRepoQueue(queue)
        self.changed = asyncio.Event()  # a pipeline has ended, or its task has left the flow
        self._slots = FetchSlots(
            settings.backfill_concurrency,
            max(1, settings.backfill_concurrency // 4),
            settings.pds_concurrency,
            settings.tuning.host_queue_seconds,
            clock,
        )
        self._pipeline = RepoPipeline(
            settings,
            queue=self.queue,
            resolver=resolver,
            budget=budget,
            client=client,
            slots=self._slots,
            small=small,
            large=large,
            changed=self.changed,
            clock=clock,
        )
        self._running: dict[Key, tuple[ClaimRun, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def room(self, *, resync: bool) -> int:
        """How many claims of this kind to add now: enough to fill the free slots and to queue about one per slot.

        0 while the flow is behind. Backlog claims take no room from resyncs. Claims that wait because their host is at its
        limit do not count as queued, up to QUEUED_PER_SLOT per slot; FetchSlots evicts what its host cannot serve soon.
        """
        runs = [run for run, _ in self._running.values()]
        in_flow = sum(run.task is not None for run in runs)
        if in_flow >= MOST_IN_FLOW:
            return 0
        slots, blocked = self._slots.limit(urgent=resync), self._slots.queued(urgent=resync)
        waiting = max(0, sum(run.waiting and run.resync is resync for run in runs) - blocked)
        # stale repos between two fetches
        sleeping = len(runs) - self._slots.taken - sum(run.waiting for run in runs) - in_flow
        free = (slots - self._slots.taken) + slots + 2 - waiting - max(0, sleeping - slots)
        return min(free, slots * QUEUED_PER_SLOT - blocked)

    def evict_overdue(self) -> None:
        """Release, uncounted, claims that a slow host would not serve soon."""
        self._slots.evict_overdue()

    def start(self, group: asyncio.TaskGroup, claim: Claim, *, resync: bool) -> None:
        """Start the pipeline of a claim."""
        run = ClaimRun(claim, resync)
        self._running[claim.did, claim.attempt] = run, group.create_task(self._run(run), name=claim.did)
        metrics.REPOS_RUNNING.set(len(self._running))

    async def renew(self, worker: str) -> None:
        """Renew the leases of all claims; stop and fence those that were lost."""
        held = dict(self._running)
        if not held:
            return
        ours = await self.queue.run(lambda queue: queue.renew(worker, held.keys()))
        for key, (run, task) in held.items():
            # once its outcome is in the log, a claim has no lease and needs none
            if key not in ours and not task.done() and not (run.task is not None and run.task.finished):
                metrics.CLAIMS.labels("lost").inc()
                _fence(run, task)

    async def finish(self, seconds: float) -> None:
        """Wait that long for the pipelines to end, then stop the rest."""
        if self._running:
            await asyncio.wait([task for _, task in self._running.values()], timeout=seconds)
        rest = list(self._running.values())
        for run, task in rest:
            _fence(run, task)
        if rest:
            await asyncio.wait([task for _, task in rest])

    async def _run(self, run: ClaimRun) -> None:
        try:
            await self._pipeline.run(run)
        finally:
            self._running.pop((run.claim.did, run.claim.attempt), None)
            metrics.REPOS_RUNNING.set(len(self._running))
            self.changed.set()


def _fence(run: ClaimRun, task: asyncio.Task[None]) -> None:
    """Stop the pipeline, and prevent further writes of its task by the flow."""
    if run.task is not None:
        run.task.fenced = True
    task.cancel()
