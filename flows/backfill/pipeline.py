"""The pipeline of one repo: resolve → fetch → verify and emit → outcome. One asyncio task runs it for each claim.

    resolve   DID document → PDS and signing key
    fetch     with a fetch slot of that PDS: download the CAR into a spool
    submit    hand the download to the flow's thread; blocks while the flow is behind (the slot is kept meanwhile)
    result    the flow's thread has verified the snapshot and written its messages and outcome; or has rejected it
    outcome   every failure goes to `failures.py`: retry, pause of the host, state of the account, or the last attempt

An identity that may be outdated is resolved afresh once: when the PDS reports an account state, when the signature
does not verify, and when the snapshot is older than the rev already seen.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from connectors.atproto.fetch_slots import FetchSlots, QueueFull, TooSlow
from connectors.atproto.pds import Download, FetchFailed, PdsClient
from connectors.atproto.rate_budget import HostBudget
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable, Resolver
from connectors.kafka.producer import now_text
from connectors.postgres.repo_queue import Claim
from connectors.runtime import metrics
from connectors.runtime.background_loop import Handover
from flows.backfill.async_queue import AsyncRepoQueue
from flows.backfill.failures import FailureHandler, identity_failure
from flows.backfill.task import Result, SnapshotTask
from protocol.did_document import ResolvedIdentity
from protocol.snapshot import Limits, SnapshotReason, SnapshotRejected
from schemas.settings import Settings
from steps.backoff import retry_seconds
from steps.host_speed import Transfer
from steps.retry import Failure, FailureReason, RetryPolicy, Unavailable, decide

DOUBTED_AFTER = 2  # counted failures, after which the DID document is resolved afresh
STALE_FIRST_SECONDS = 2.0
STALE_LONGEST_SECONDS = 120.0
_UNREADABLE = (
    SnapshotReason.BAD_CAR,
    SnapshotReason.NOT_A_CAR,
    SnapshotReason.TOO_LARGE,
    SnapshotReason.TOO_MANY_BLOCKS,
    SnapshotReason.TRUNCATED,
)
_KEY_MAY_HAVE_CHANGED = (SnapshotReason.BAD_SIGNATURE, SnapshotReason.NO_KEY)


@dataclass(slots=True, eq=False)
class ClaimRun:
    """Progress of one claim, for the worker. `waiting`: it has had no fetch slot yet; `task`: its task in the flow."""

    claim: Claim
    resync: bool
    waiting: bool = True
    task: SnapshotTask | None = None


@dataclass(slots=True)
class _Staleness:
    """Since when, and how many times, the PDS has served snapshots older than the rev already seen."""

    since: float | None = None
    times: int = 0


class RepoPipeline:
    """Runs claims. `small` and `large` take downloads to the flow; `changed` is set when a task leaves the flow."""

    def __init__(
        self,
        settings: Settings,
        *,
        queue: AsyncRepoQueue,
        resolver: Resolver,
        budget: HostBudget,
        client: PdsClient,
        slots: FetchSlots,
        small: Handover[SnapshotTask],
        large: Handover[SnapshotTask],
        changed: asyncio.Event,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._grace = settings.tuning.stale_seconds
        self._limits = Limits(
            settings.tuning.snapshot_max_bytes or settings.backfill_max_car_bytes, settings.max_car_blocks
        )
        self._policy = RetryPolicy(
            settings.backfill_max_attempts,
            settings.tuning.retry_first_seconds,
            settings.tuning.retry_max_seconds,
            settings.tuning.rate_limit_pause_seconds,
        )
        self._failures = FailureHandler(queue, budget, self._policy)
        self._queue = queue
        self._resolver = resolver
        self._budget = budget
        self._client = client
        self._slots = slots
        self._small = small
        self._large = large
        self._changed = changed

    async def run(self, run: ClaimRun) -> None:
        """Work on a claim until it is produced, released or lost."""
        try:
            await self._mirror(run)
        except FetchFailed as err:
            state = await self._failures.handle(run.claim, err.failure, err.host)
            if state is not None:
                await self._result(run, await self._submit(run, run.claim.min_rev, None, state))

    async def _mirror(self, run: ClaimRun) -> None:
        """Fetch, verify and emit, with repeats. Raises FetchFailed, also for a rejected snapshot."""
        claim, stale, fresh = run.claim, _Staleness(), False
        min_rev: str | None = claim.min_rev
        while min_rev is not None:
            identity, pds = await self._resolve(claim, fresh=fresh)
            async with self._slot(pds, resync=run.resync):
                run.waiting = False
                identity, download = await self._fetch(identity, pds, fresh=fresh)
                submitted = await self._submit(run, min_rev, identity, download)
            rejected = await self._result(run, submitted)
            if rejected is None:
                return
            _count(rejected)
            failed = FetchFailed(Failure(rejected.reason, rejected.detail), download.host)
            if rejected.reason is SnapshotReason.STALE:
                if not fresh:
                    fresh = True
                    newer, _ = await self._resolve(claim, fresh=True)
                    if (newer.pds, newer.signing_key) != (identity.pds, identity.signing_key):
                        continue  # the account has moved: that was its old PDS
                min_rev = await self._await_newer(claim, min_rev, stale, failed)
            elif rejected.reason in _KEY_MAY_HAVE_CHANGED and not fresh:
                fresh = True
            else:
                raise failed

    async def _resolve(self, claim: Claim, *, fresh: bool) -> tuple[ResolvedIdentity, str]:
        """The identity and its PDS, resolved afresh after repeated failures: the account may have moved."""
        did = claim.did
        try:
            if claim.retry_count >= DOUBTED_AFTER and not fresh:
                with suppress(IdentityUnreachable):
                    await self._resolver.resolve(did, fresh=True)
            identity = await self._resolver.resolve(did, fresh=fresh)
            if identity.pds is None and not fresh:
                identity = await self._resolver.resolve(did, fresh=True)
        except (IdentityNotFound, IdentityUnreachable) as err:
            raise FetchFailed(identity_failure(did, err)) from err
        if identity.pds is None:
            raise FetchFailed(Failure(FailureReason.NO_PDS, "the DID document names no PDS"))
        return identity, identity.pds

    @asynccontextmanager
    async def _slot(self, host: str, *, resync: bool) -> AsyncIterator[None]:
        """Hold a fetch slot of the host. Raises FetchFailed if too many repos wait for it."""
        try:
            async with self._slots.slot(host, urgent=resync):
                yield
        except QueueFull as err:
            raise FetchFailed(Failure(FailureReason.HOST_BUSY, str(err), err.seconds)) from err

    async def _fetch(self, identity: ResolvedIdentity, host: str, *, fresh: bool) -> tuple[ResolvedIdentity, Download]:
        """The download. Raises FetchFailed, also if the host is too slow while other repos wait."""
        try:
            async with self._slots.fetching(host) as transfer:
                return await self._get_repo(identity, host, transfer, fresh=fresh)
        except TooSlow as err:
            reason = FailureReason.TOO_SLOW if err.counted else FailureReason.HOST_SLOW
            raise FetchFailed(Failure(reason, str(err), err.seconds), host) from err

    async def _get_repo(
        self, identity: ResolvedIdentity, host: str, transfer: Transfer, *, fresh: bool
    ) -> tuple[ResolvedIdentity, Download]:
        """The download, from the account's current PDS: an account state reported by a former PDS does not count."""
        try:
            download = await self._client.get_repo(identity.did, host, transfer)
        except FetchFailed as err:
            decision = decide(err.failure, 0, self._policy, key=identity.did)
            if fresh or not isinstance(decision, Unavailable):
                raise
            try:
                newer = await self._resolver.resolve(identity.did, fresh=True)
            except (IdentityNotFound, IdentityUnreachable) as unresolved:
                raise FetchFailed(identity_failure(identity.did, unresolved)) from unresolved
            if newer.pds is None or newer.pds == host:
                raise
            return newer, await self._client.get_repo(newer.did, newer.pds, transfer)
        try:
            await self._budget.record_served(host)
        except BaseException:
            download.spool.close()
            raise
        return identity, download

    async def _submit(
        self, run: ClaimRun, min_rev: str, identity: ResolvedIdentity | None, fetched: Download | Unavailable
    ) -> asyncio.Future[Result]:
        """Hand over to the flow's thread; blocks while the flow is behind. Returns a future of the result."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        task = run.task = SnapshotTask(
            run.claim,
            min_rev,
            identity=identity,
            fetched=fetched,
            at=fetched.time if isinstance(fetched, Download) else now_text(),
            on_result=partial(_deliver, result),
            limits=self._limits,
        )
        try:
            await (self._large if task.large else self._small).put(task)
        except BaseException:
            task.finish(None)
            self._left_flow(run)
            raise
        return result

    async def _result(self, run: ClaimRun, submitted: asyncio.Future[Result]) -> Result:
        try:
            return await submitted
        finally:
            self._left_flow(run)

    def _left_flow(self, run: ClaimRun) -> None:
        run.task = None
        self._changed.set()

    async def _await_newer(self, claim: Claim, min_rev: str, stale: _Staleness, failed: FetchFailed) -> str | None:
        """Wait, with back-off, before the next fetch; returns its min_rev, or None if the claim was lost.

        The claim is kept, so live events stay buffered. After `stale_seconds` of stale snapshots, counted over all attempts,
        RepoQueue lowers min_rev. Raises `failed` after 1.5 times as long in this claim, or at the hourly limit of fetches.
        """
        stale.since = stale.since or self._clock()
        if self._clock() - stale.since > self._grace * 1.5:
            raise failed
        current = await self._queue.run(lambda queue: queue.stale(claim.did, claim.attempt, self._grace))
        stale.times += 1
        if current == min_rev:
            first, longest = min(STALE_FIRST_SECONDS, self._grace / 20), min(STALE_LONGEST_SECONDS, self._grace / 5)
            await asyncio.sleep(retry_seconds(stale.times, claim.did, first, longest))
        if current is not None and not await self._queue.run(lambda queue: queue.refetch(claim.did, claim.attempt)):
            raise failed
        return current


def _deliver(result: asyncio.Future[Result], value: Result) -> None:
    """Set a future of the loop from the flow's thread."""
    with suppress(RuntimeError):  # the loop has ended, and its pipelines with it
        result.get_loop().call_soon_threadsafe(_set, result, value)


def _set(result: asyncio.Future[Result], value: Result) -> None:
    if not result.done():
        result.set_result(value)


def _count(rejected: SnapshotRejected) -> None:
    errors = metrics.PARSE_ERRORS if rejected.reason in _UNREADABLE else metrics.VERIFY_ERRORS
    errors.labels(rejected.reason).inc()
