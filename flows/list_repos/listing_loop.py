"""One listing: request a page, decide, wait, repeat. `steps.listing.paginator` decides after every request.

Skipped ranges are filled between passes (`steps.listing.range_fill`). Pages and changes of the listing's state leave
through the crawler's bounded queue, which stops the loop while the flow is behind.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from connectors.atproto.relay import Pager
from connectors.postgres.repo_queue import FOREVER
from connectors.postgres.stream_cursors import Stored
from connectors.runtime import metrics
from connectors.runtime.background_loop import Handover
from schemas.flows import LIST_REPOS
from schemas.settings import Settings
from steps.job_states import Target
from steps.listing.list_page import ListEntry, PageFailure, PageTrouble, RepoPage
from steps.listing.listing_progress import Fact, ListingTally, RangeFilled, RangeNarrowed
from steps.listing.paginator import Listing, ListingDecision, ListingPolicy, decide, restart
from steps.listing.range_fill import RangeFill, begin
from steps.listing.skip_ahead import reached

FLOW = LIST_REPOS
CHECK_SECONDS = 2.0  # how often gaps, skipped ranges and jobs are read from the database
PAUSED_SECONDS = 0.5  # how often a listing of a paused job checks whether to continue
LONGEST_RETRY_SECONDS = 3600.0
FILL_REST = 10.0  # pause after a fill, per failed request, in retry waits

logger = logging.getLogger(FLOW)


@dataclass(frozen=True, slots=True)
class ListedPage:
    """A page, or only a change of a listing. `host`: the PDS that was listed, None for a relay; `state`: None in a fill.

    `asked_at`: when its request was sent, by the database's clock. `later`: from a pass after the first; its new repos do not
    belong to the job. `tally`: filled in by `discover`.
    """

    upstream: str
    host: str | None
    entries: list[ListEntry]
    state: Listing | None
    facts: list[Fact] = field(default_factory=list)
    asked_at: float = FOREVER
    later: bool = False
    tally: ListingTally = field(default_factory=ListingTally)


@dataclass(frozen=True, slots=True)
class DueRange:
    """A skipped range to fill now."""

    id: int
    upstream: str
    from_cursor: str
    to_cursor: str
    retry_count: int


@dataclass(slots=True, eq=False)
class CrawlContext:
    """What the listings of a crawl share. `permits`: for requests to PDSes; `paused`: keys of listings that must wait."""

    settings: Settings
    pager: Pager
    queue: Handover[ListedPage]
    permits: asyncio.Semaphore
    clock: Callable[[], float]
    paused: Callable[[], Collection[str]]


class ListingLoop:
    """One listing, in the crawler's event loop. Other threads change it only through `Crawler`; `wake` ends its wait."""

    def __init__(self, context: CrawlContext, target: Target, stored: Stored | None) -> None:
        self._context = context
        self._clock = context.clock
        self._policy = policy_of(context.settings, target)
        self.target = target
        fresh = Listing(size=self._policy.page_size, began=self._clock())
        self.state = fresh if stored is None else _restored(stored, fresh)
        self.relist = False  # start another pass as soon as the settings allow
        self.hurry = False  # request now, without further wait
        self.fills: dict[int, DueRange] = {}
        self.fill_at = 0.0  # not before
        self.wake = asyncio.Event()
        self.problem: str | None = None
        self.throttled_until = 0.0
        self._asked_at = FOREVER  # when the last request was sent

    async def run(self) -> None:
        """Runs until cancelled. A listing of a job has one pass; after it, only skipped ranges are filled."""
        until = 0.0
        while True:
            while self.target.key in self._context.paused():
                await self._nap(PAUSED_SECONDS)
            if self.fills and self.state.done:
                await self._fill_ranges()
            if self.target.job is not None and self.state.done:
                self.hurry = False
                await self._wait(self._clock() + self._policy.recheck_seconds)
                continue
            if self._pass_is_due():
                await self._start_pass()
            elif self._clock() < until and not self.hurry:
                await self._wait(until)
                continue
            self.hurry = False
            until = await self._step()

    async def _start_pass(self) -> None:
        self.state, self.relist = restart(self.state, self._clock(), self._policy), False
        logger.info("listing from the first page", extra={"upstream": self.target.key})
        metrics.LISTING_RESTARTS.labels(self.target.label).inc()
        await self._emit([])

    async def _step(self) -> float:
        """One request and its decision. Returns when the next request may follow."""
        answer = await self._request(self.state.cursor, self.state.size)
        later, before = self.state.passes > 0, self.state
        decision = decide(self.state, answer, self._clock(), self._policy)
        self.state, self.problem = decision.state, decision.stuck or decision.state.cut or None
        throttled = isinstance(answer, PageFailure) and answer.trouble is PageTrouble.THROTTLED
        self.throttled_until = decision.wait_until if throttled else 0.0
        if isinstance(answer, PageFailure):
            metrics.UPSTREAM_ERRORS.labels(FLOW, answer.trouble.value).inc()
            moved = (decision.state.cursor, decision.state.done) != (before.cursor, before.done)
            if decision.skip is not None or moved:
                await self._emit([], [] if decision.skip is None else [decision.skip])
        elif decision.stuck and not decision.ended:
            metrics.UPSTREAM_ERRORS.labels(FLOW, "too_many_repos").inc()
            logger.warning("a PDS's listing is cut", extra={"upstream": self.target.key, "why": decision.stuck})
        else:
            await self._emit(answer.entries, later=later)
        if decision.ended:
            self._report_end(decision)
        return decision.wait_until

    def _report_end(self, decision: ListingDecision) -> None:
        metrics.LISTING_COMPLETE.labels(self.target.label).set(1)
        if decision.stuck:
            metrics.UPSTREAM_ERRORS.labels(FLOW, "pass_cut").inc()
            logger.warning("a listing has no end", extra={"upstream": self.target.key, "why": decision.stuck})

    def _pass_is_due(self) -> bool:
        """A pass is never restarted before its end: a network too large for one interval would never be listed whole."""
        settings, age = self._context.settings, self._clock() - self.state.began
        limit = settings.tuning.gap_relist_seconds if self.relist else settings.tuning.list_relist_seconds
        return self.target.job is None and self.state.done and age >= limit

    async def _wait(self, until: float) -> None:
        """Until that time, or until there is something else to do."""
        while (left := until - self._clock()) > 0 and not self.hurry:
            if (self.relist and self._pass_is_due()) or (self.fills and self.state.done):
                return
            await self._nap(min(left, CHECK_SECONDS) if self.relist else left)

    async def _nap(self, seconds: float) -> None:
        """That long, or until `wake` is set."""
        self.wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wake.wait()

    async def _request(self, cursor: str, size: int) -> RepoPage | PageFailure:
        pager, target = self._context.pager, self.target
        if target.relay:
            self._asked_at = self._clock()
            page = await pager.repos(target.url, cursor, size)
        else:
            async with self._context.permits:
                self._asked_at = self._clock()
                page = await pager.repos(target.url, cursor, size, target.collection)
        if not isinstance(page, PageFailure) and page.rejected:
            metrics.REJECTED.labels(FLOW, "bad_entry").inc(page.rejected)
        return page

    async def _emit(self, entries: list[ListEntry], facts: list[Fact] | None = None, *, later: bool = False) -> None:
        key, host = self.target.key, self.target.host
        await self._context.queue.put(ListedPage(key, host, entries, self.state, facts or [], self._asked_at, later))

    async def _fill_ranges(self) -> None:
        """One round of each skipped range that is due: read what can be read, and shrink it to what cannot."""
        while self.fills:
            _, due = self.fills.popitem()
            self.fill_at = float("inf")  # so that the same range is not requested again meanwhile
            fill = begin(due.from_cursor, due.to_cursor, self._policy.page_size, due.retry_count)
            await self._read_range(fill)
            left = fill.left()
            reason = fill.detail or "the range was not read to its end"
            fact: Fact = RangeNarrowed(due.id, left, due.retry_count, reason) if left else RangeFilled(due.id)
            # after a range at the end of the list, continue from the last page read
            moved = fill.furthest not in ("", self.state.cursor) and reached(fill.furthest, self.state.cursor)
            if moved:
                self.state = replace(self.state, cursor=fill.furthest, safe=fill.furthest)
            self.state = replace(self.state, entries=self.state.entries + fill.entries)
            self.fill_at = self._clock() + FILL_REST * self._policy.first_wait * max(1, fill.failures)
            key, host = self.target.key, self.target.host
            await self._context.queue.put(ListedPage(key, host, [], self.state if moved else None, [fact]))

    async def _read_range(self, fill: RangeFill) -> None:
        most = self._policy.most
        while (piece := fill.next()) is not None:
            answer = await self._request(piece.from_cursor, piece.size)
            if isinstance(answer, PageFailure):
                metrics.UPSTREAM_ERRORS.labels(FLOW, answer.trouble.value).inc()
                fill.failed(piece, answer)
                await asyncio.sleep(self._policy.first_wait)
                continue
            fill.answered(piece, answer)
            if most is not None and self.state.entries + fill.entries > most:
                fill.pending.append(piece)
                fill.detail, fill.stopped = f"it lists more than {most} repos", True
                return
            key, host = self.target.key, self.target.host
            await self._context.queue.put(ListedPage(key, host, answer.entries, None, asked_at=self._asked_at))


def policy_of(settings: Settings, target: Target) -> ListingPolicy:
    """The policy for a listing of a relay or of a PDS."""
    return ListingPolicy(
        page_size=min(settings.tuning.list_page_size, target.page_size),
        skip_after=settings.tuning.skip_after_failures,
        skip_step=settings.tuning.skip_step,
        relay=target.relay,
        recheck_seconds=settings.tuning.list_recheck_seconds
        if target.relay
        else settings.tuning.list_hosts_recheck_seconds,
        # an operator names the hosts of a job: they may list any number
        most=settings.tuning.list_host_repos if target.host is not None and target.job is None else None,
        first_wait=settings.tuning.list_retry_seconds,
        longest_wait=60.0 if target.relay else LONGEST_RETRY_SECONDS,
    )


def _restored(stored: Stored, fresh: Listing) -> Listing:
    """A listing as it was stored; values that are missing or of another type are as in a fresh one."""
    detail: dict[str, Any] = stored.detail
    began, passes, safe, entries = (detail.get(name) for name in ("began", "pass", "safe", "entries"))
    cut, rounds = detail.get("cut"), detail.get("rounds")
    return replace(
        fresh,
        cursor=stored.position,
        safe=safe if isinstance(safe, str) else stored.position,
        entries=entries if isinstance(entries, int) else 0,
        passes=passes if isinstance(passes, int) else 0,
        done=detail.get("done") is True,
        cut=cut if isinstance(cut, str) else "",
        rounds=rounds if isinstance(rounds, int) else 0,
        began=float(began) if isinstance(began, int | float) else fresh.began,
    )
