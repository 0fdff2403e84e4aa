"""What happens to a claim, in the loop's thread: resolve, fetch, hand over, and answer every failure with a decision.

One task per claim, a bounded number of them fetching at once, and of each host fewer than that: one that is slow keeps
nobody else back. Repos that need a resync start before the backlog, and have a few places that the backlog cannot take.
Nothing here ends silently: an unexpected error ends the task group, and so the process (B8).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg

from connectors.atproto.fetch_slots import FetchSlots, QueueFull, TooSlow
from connectors.atproto.pds import Download, FetchFailed, PdsClient
from connectors.atproto.rate_budget import HostBudget
from connectors.identity.resolver import IdentityNotFound, IdentityUnreachable, Resolver
from connectors.kafka.producer import now_text
from connectors.postgres.repo_queue import Claim, RepoQueue
from connectors.runtime import metrics
from connectors.runtime.background_loop import Handover
from connectors.runtime.patience import OUTAGE_SECONDS, passes
from flows.backfill.task import Verdict, Work
from protocol.did_document import Identity
from protocol.snapshot import Limits, SnapshotReason, SnapshotRejected
from schemas.settings import Settings
from steps.host_speed import Transfer
from steps.retry import (
    NOT_ASKED,
    Failure,
    GiveUp,
    PauseHost,
    Reason,
    RetryIn,
    RetryPolicy,
    Unavailable,
    backoff,
    decide,
    patience,
)

X = TypeVar("X")
Key = tuple[str, int]  # (DID, attempt)

READY_WORKS = 500
QUEUED_PER_SLOT = 10  # claims that may wait for hosts which have their share of the places
DOUBTED_AFTER = 2  # failures, before the DID document is asked for again
STALE_FIRST_SECONDS = 2.0
STALE_LONGEST_SECONDS = 120.0
_UNREAD = (
    SnapshotReason.BAD_CAR,
    SnapshotReason.NOT_A_CAR,
    SnapshotReason.TOO_LARGE,
    SnapshotReason.TOO_MANY_BLOCKS,
    SnapshotReason.TRUNCATED,
)
_KEY_MAY_HAVE_CHANGED = (SnapshotReason.BAD_SIGNATURE, SnapshotReason.NO_KEY)

log = logging.getLogger("backfill")


@dataclass(slots=True)
class _Staleness:
    """How long, and how often, a claim has been given snapshots below what was heard."""

    since: float | None = None
    times: int = 0


class Attempts:
    """The claims of this worker. `small` and `large` take what is fetched to the flow."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: RepoQueue,
        resolver: Resolver,
        budget: HostBudget,
        client: PdsClient,
        tell: Callable[[Work, Verdict], None],
        small: Handover[Work],
        large: Handover[Work],
    ) -> None:
        self._settings = settings
        self._store = store
        self._store_turn = asyncio.Lock()
        self._resolver = resolver
        self._budget = budget
        self._client = client
        self._tell = tell
        self._snapshot_limits = Limits(settings.snapshot_max_bytes or settings.car_max_bytes, settings.car_max_blocks)
        self._small = small
        self._large = large
        self._policy = RetryPolicy(
            settings.max_attempts,
            settings.retry_first_seconds,
            settings.retry_max_seconds,
            settings.rate_limit_pause_seconds,
        )
        self._slots = FetchSlots(
            settings.backfill_concurrency,
            max(1, settings.backfill_concurrency // 4),
            settings.host_concurrency,
            settings.host_line_seconds,
        )
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._waiting: dict[Key, bool] = {}  # claims that have had no place yet; is it a resync?
        self._works: dict[Key, tuple[Work, asyncio.Future[Verdict]]] = {}
        self.changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._tasks)

    def room(self, *, resync: bool) -> int:
        """Claims that may be added now: for every free place, and as many again to wait; none while the flow is behind.

        Each kind waits for itself: whatever the backlog has claimed, there is room for a resync, which goes first. Those
        that wait for a host which has its share are let past, up to a number; what is too much for a host is sent away.
        """
        if len(self._works) >= READY_WORKS:
            return 0
        places = self._slots.limit(urgent=resync)
        queued = self._slots.queued(urgent=resync)
        waiting = max(0, sum(kind is resync for kind in self._waiting.values()) - queued)
        parked = (
            len(self._tasks) - self._slots.taken - len(self._waiting) - len(self._works)
        )  # between fetches, if stale
        free = (places - self._slots.taken) + places + 2 - waiting - max(0, parked - places)
        return min(free, places * QUEUED_PER_SLOT - queued)

    def evict_overdue(self) -> None:
        """Give back, uncounted, what a slow host would not come to soon."""
        self._slots.evict_overdue()

    def start(self, group: asyncio.TaskGroup, claim: Claim, *, resync: bool) -> None:
        """Work on a claim."""
        task = group.create_task(self._run(claim, resync=resync), name=claim.did)
        self._tasks[_key(claim)], self._waiting[_key(claim)] = task, resync
        metrics.REPOS_RUNNING.set(len(self._tasks))

    def verdict(self, work: Work, verdict: Verdict) -> None:
        """What the flow says about a work; called in the loop's thread."""
        known, future = self._works.get(_key(work.claim), (None, None))
        if known is work and future is not None and not future.done():
            future.set_result(verdict)

    async def stored(self, call: Callable[[RepoQueue], X]) -> X:
        """A transaction of the RepoQueue, in a thread; waits a while for a database that is away."""
        deadline = time.monotonic() + OUTAGE_SECONDS
        async with self._store_turn:
            while True:
                try:
                    return await _to_its_end(asyncio.to_thread(call, self._store))
                except psycopg.OperationalError as err:
                    if not passes(err) or time.monotonic() > deadline:
                        raise
                    why = " ".join(str(err).split())
                    log.warning("the database is asked again", extra={"error": why})
                    await asyncio.sleep(1.0)

    async def renew(self, worker: str) -> None:
        """Renew the leases of everything that is worked on; what is no longer ours is stopped and fenced."""
        held = dict(self._tasks)
        if not held:
            return
        ours = await self.stored(lambda store: store.renew(worker, [did for did, _ in held]))
        for key, task in held.items():
            # a work whose outcome is in the log has no lease any more, and needs none
            if key not in ours and not task.done() and not (key in self._works and self._works[key][0].finished):
                metrics.CLAIMS.labels("lost").inc()
                self._fence(key, task)

    async def finish(self, seconds: float) -> None:
        """Give what is being fetched or written some time, then stop the rest."""
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        rest = dict(self._tasks)
        for key, task in rest.items():
            self._fence(key, task)
        if rest:
            await asyncio.wait(rest.values())

    def _fence(self, key: Key, task: asyncio.Task[None]) -> None:
        if key in self._works:
            self._works[key][0].fenced = True
        task.cancel()

    async def _run(self, claim: Claim, *, resync: bool) -> None:
        try:
            await self._attempt(claim, resync=resync)
        finally:
            self._tasks.pop(_key(claim), None)
            self._waiting.pop(_key(claim), None)
            metrics.REPOS_RUNNING.set(len(self._tasks))
            self.changed.set()

    async def _attempt(self, claim: Claim, *, resync: bool) -> None:
        try:
            await self._pursue(claim, resync=resync)
        except FetchFailed as err:
            await self._settle(claim, err.failure, err.host)

    async def _pursue(self, claim: Claim, *, resync: bool) -> None:
        """Fetch and hand over until the claim is produced or lost. Raises FetchFailed, also for a refused snapshot."""
        wanted: str | None = claim.min_rev
        stale = _Staleness()
        fresh = False
        while wanted is not None:
            identity, host = await self._resolve(claim, fresh=fresh)
            async with self._place(host, resync=resync):
                self._waiting.pop(_key(claim), None)
                identity, download = await self._timed(identity, host, fresh=fresh)
                work = await self._hand_over(claim, wanted, identity, download)
            rejected = await self._verdict(work)
            if rejected is None:
                return
            failure = Failure(rejected.reason, rejected.detail)
            _count(rejected)
            if rejected.reason is SnapshotReason.STALE:
                if not fresh:
                    fresh = True
                    newer, _ = await self._resolve(claim, fresh=True)
                    if (newer.pds, newer.signing_key) != (identity.pds, identity.signing_key):
                        continue  # it was a PDS that the account has left
                wanted = await self._outwait(claim, wanted, stale, FetchFailed(failure, download.host))
            elif rejected.reason in _KEY_MAY_HAVE_CHANGED and not fresh:
                fresh = True
            else:
                raise FetchFailed(failure, download.host)

    @asynccontextmanager
    async def _place(self, host: str, *, resync: bool) -> AsyncIterator[None]:
        """A place at the host. Raises FetchFailed where too many wait for it."""
        try:
            async with self._slots.slot(host, urgent=resync):
                yield
        except QueueFull as err:
            raise FetchFailed(Failure(Reason.HOST_BUSY, str(err), err.seconds)) from err

    async def _outwait(self, claim: Claim, wanted: str, stale: _Staleness, failed: FetchFailed) -> str | None:
        """The rev to ask for next, after a while; the claim is kept, so that live events are held and it stands still.

        What was heard is given up after `stale_seconds` (by the store, for all attempts). None: the claim was lost.
        """
        grace = self._settings.stale_seconds
        stale.since = stale.since or time.monotonic()
        if time.monotonic() - stale.since > grace * 1.5:
            raise failed
        now_wanted = await self.stored(lambda store: store.stale(claim.did, claim.attempt, grace))
        stale.times += 1
        if now_wanted == wanted:
            first = min(STALE_FIRST_SECONDS, grace / 20)
            await asyncio.sleep(backoff(stale.times, claim.did, first, min(STALE_LONGEST_SECONDS, grace / 5)))
        if now_wanted is not None and not await self.stored(lambda store: store.refetch(claim.did, claim.attempt)):
            raise failed  # what is left to find out waits for the next hour
        return now_wanted

    async def _resolve(self, claim: Claim, *, fresh: bool) -> tuple[Identity, str]:
        """The identity, and its PDS. Where it has failed again and again, the account may have moved without our hearing it."""
        did = claim.did
        try:
            if claim.retry_count >= DOUBTED_AFTER and not fresh:
                with suppress(IdentityUnreachable):
                    await self._resolver.resolve(did, fresh=True)
            identity = await self._resolver.resolve(did, fresh=fresh)
            if identity.pds is None and not fresh:
                identity = await self._resolver.resolve(did, fresh=True)
        except IdentityNotFound as err:
            raise FetchFailed(_no_identity(err)) from err
        except IdentityUnreachable as err:
            raise FetchFailed(_unreachable(did, err)) from err
        if identity.pds is None:
            raise FetchFailed(Failure(Reason.NO_PDS, "the DID document names no PDS"))
        return identity, identity.pds

    async def _timed(self, identity: Identity, host: str, *, fresh: bool) -> tuple[Identity, Download]:
        """The repo. Raises FetchFailed, also where the host is too slow for others that wait."""
        try:
            async with self._slots.fetching(host) as transfer:
                return await self._fetch(identity, host, transfer, fresh=fresh)
        except TooSlow as err:
            reason = Reason.TOO_SLOW if err.counted else Reason.HOST_SLOW
            raise FetchFailed(Failure(reason, str(err), err.seconds), host) from err

    async def _fetch(
        self, identity: Identity, host: str, transfer: Transfer, *, fresh: bool
    ) -> tuple[Identity, Download]:
        """The repo, asked for at the PDS of today: what an old PDS says of an account that moved away is no news."""
        try:
            download = await self._client.get_repo(identity.did, host, transfer)
        except FetchFailed as err:
            verdict = decide(err.failure, 0, self._policy, key=identity.did)
            if fresh or not isinstance(verdict, Unavailable):
                raise
            try:
                newer = await self._resolver.resolve(identity.did, fresh=True)
            except IdentityNotFound as none:
                raise FetchFailed(_no_identity(none)) from none
            except IdentityUnreachable as silent:  # nobody knows where it lives: not the time to believe it
                raise FetchFailed(_unreachable(identity.did, silent)) from silent
            if newer.pds is None or newer.pds == host:
                raise
            return newer, await self._client.get_repo(newer.did, newer.pds, transfer)
        try:
            await self._budget.answered(host)
        except BaseException:
            download.spool.close()
            raise
        return identity, download

    async def _hand_over(
        self, claim: Claim, min_rev: str, identity: Identity | None, fetched: Download | Unavailable
    ) -> Work:
        """Put it before the flow; waits while the flow is behind."""
        at = fetched.time if isinstance(fetched, Download) else now_text()
        work = Work(
            claim, min_rev, identity=identity, fetched=fetched, at=at, tell=self._tell, limits=self._snapshot_limits
        )
        self._works[_key(claim)] = work, asyncio.get_running_loop().create_future()
        try:
            await (self._large if work.large else self._small).put(work)
        except BaseException:
            work.finish(None)
            self._forget(work)
            raise
        return work

    async def _verdict(self, work: Work) -> Verdict:
        try:
            return await self._works[_key(work.claim)][1]
        finally:
            self._forget(work)

    def _forget(self, work: Work) -> None:
        del self._works[_key(work.claim)]
        self.changed.set()

    async def _settle(self, claim: Claim, failure: Failure, host: str | None) -> None:
        """A failed attempt becomes an outcome, a pause, a retry, or the end."""
        deletion = claim.reason == "deletion"
        decision = decide(failure, claim.retry_count, self._policy, key=claim.did, deletion=deletion)
        if isinstance(decision, Unavailable):
            await self._verdict(await self._hand_over(claim, claim.min_rev, None, decision))
            return
        asked = failure.reason not in NOT_ASKED
        if asked:
            metrics.FETCH_ERRORS.labels(failure.reason).inc()
        else:
            metrics.CLAIMS.labels("put_off").inc()
        counted, seconds = True, 0.0
        if isinstance(decision, PauseHost):
            counted, seconds = False, decision.retry_seconds
            if host is not None:
                await self._budget.pause(host, decision.seconds, str(failure))
        elif isinstance(decision, RetryIn):
            counted, seconds = decision.counted, decision.seconds
        if counted:
            metrics.REPOS_FAILED.labels(failure.reason).inc()
            if host is not None:
                await self._budget.failed(host, str(failure))
        last = isinstance(decision, GiveUp)
        metrics.RETRIES.inc(not last)
        phase = await self.stored(
            lambda store: store.retry(
                claim.did,
                claim.attempt,
                str(failure),
                seconds,
                counted=counted,
                last=last,
                patience=patience(failure.reason),
                slower=failure.reason is Reason.DIRECTORY_UNREACHABLE,
            )
        )
        fields: dict[str, Any] = {
            "did": claim.did,
            "why": str(failure),
            "phase": phase,
            "in_seconds": round(seconds, 1),
        }
        metrics.REPOS_GIVEN_UP.inc(phase == "failed")
        level = logging.WARNING if phase == "failed" else logging.INFO if asked else logging.DEBUG
        log.log(level, "attempt ended", extra=fields)


async def _to_its_end(call: Coroutine[Any, Any, X]) -> X:
    """Cancelled, it still ends first: a thread cannot be stopped, and the next one would share its transaction."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(
                asyncio.CancelledError
            ):  # cancelled twice: once by a lost lease, once by the end of the process
                await asyncio.wait([task])
        raise


def _no_identity(err: IdentityNotFound) -> Failure:
    return Failure(Reason.DID_TOMBSTONED if err.gone else Reason.DID_NOT_FOUND, str(err))


def _unreachable(did: str, err: IdentityUnreachable) -> Failure:
    """A directory that is away is nobody's failure. A did:web host is the account's own, and so is a document of another DID."""
    if err.unusable:
        return Failure(Reason.BAD_DOCUMENT, str(err))
    own = did.startswith("did:web:")
    return Failure(Reason.WEB_UNREACHABLE if own else Reason.DIRECTORY_UNREACHABLE, str(err), err.retry_after)


def _key(claim: Claim) -> Key:
    return claim.did, claim.attempt


def _count(rejected: SnapshotRejected) -> None:
    if rejected.reason in _UNREAD:
        metrics.PARSE_ERRORS.labels(rejected.reason).inc()
    else:
        metrics.VERIFY_ERRORS.labels(rejected.reason).inc()
