"""The background loop of all listings: one paginator per target (`steps.listing.paginator`, `steps.job_states.Target`), pages out.

`Listings` runs in a thread of its own and hands pages over through a bounded queue. The flow's thread tells it which
targets there are (`follow`), which of them stand still (`halted`), and what else there is to do (`ask_*`).
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from connectors.atproto.host_lists import follow_hosts
from connectors.atproto.relay import Pager
from connectors.http.client import open_session
from connectors.postgres.stream_cursors import Stored
from connectors.runtime import metrics
from connectors.runtime.background_loop import Background, Handover
from schemas.settings import Settings
from steps.job_states import Target
from steps.listing.paginator import Decision, Entry, Failure, Listing, Page, Policy, Trouble, decide, restart
from steps.listing.progress import Fact, Filled, Narrowed
from steps.listing.range_fill import begin
from steps.listing.skip_ahead import reached

FLOW = "list_repos"
QUEUE_ENTRIES = 8000
LOOK_SECONDS = 2.0  # how often gaps, skipped ranges and jobs are looked for
HALTED_SECONDS = 0.5  # how often a halted listing looks whether it may go on
MAX_UPSTREAMS = 20_000  # a relay may name hosts without end; the network has some thousands
LONGEST_RETRY_SECONDS = 3600.0
FILL_REST = 10.0  # retry waits that a listing rests for each failed request of a fill

logger = logging.getLogger(FLOW)


@dataclass(frozen=True, slots=True)
class Listed:
    """A page, or only a change of a listing. `host`: the PDS that was listed, None for a relay; `state`: None in a fill.

    `later`: the list had been read to its end before, so its repos are younger than the job's cutoff.
    """

    upstream: str
    host: str | None
    entries: list[Entry]
    state: Listing | None
    facts: list[Fact] = field(default_factory=list)
    later: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """A skipped range that is due."""

    id: int
    upstream: str
    from_cursor: str
    to_cursor: str
    retry_count: int


class Upstream:
    """One listing, in the loop. `wake` interrupts its wait; the flow's thread changes it through the loop only."""

    def __init__(self, target: Target, state: Listing) -> None:
        self.target = target
        self.state = state
        self.relist = False
        self.hurry = False  # ask now, whatever was to be waited for
        self.fills: dict[int, Range] = {}
        self.fill_at = 0.0  # not before
        self.wake = asyncio.Event()
        self.problem: str | None = None
        self.throttled_until = 0.0


class Listings:
    """All listings of a flow, in one background loop."""

    def __init__(self, settings: Settings, stored: dict[str, Stored], clock: Callable[[], float]) -> None:
        self._settings = settings
        self._stored = stored
        self._clock = clock
        self.upstreams: dict[str, Upstream] = {}
        self.halted: frozenset[str] = frozenset()  # keys whose job stands still; replaced by the flow's thread
        self.hosts: dict[str, list[str]] = {}  # relay → PDSes to write down, taken by the flow's thread
        self.pdses_asked = asyncio.Event()  # a range of a relay stays closed: list the PDSes, whatever the settings say
        self.queue: Handover[Listed] = Handover(QUEUE_ENTRIES, lambda item: 1 + len(item.entries))
        self._new: asyncio.Queue[Target] = asyncio.Queue()
        self._turns = asyncio.Semaphore(settings.list_hosts_at_once)
        self._background = Background(f"{FLOW} pages", self._main)
        self.start, self.check = self._background.start, self._background.check
        self.cancel, self._call = self._background.cancel, self._background.call

    def policy(self, target: Target) -> Policy:
        """How a listing of a relay, or of a PDS, behaves."""
        settings = self._settings
        return Policy(
            page_size=min(settings.list_page_size, target.page_size),
            skip_after=settings.skip_after_failures,
            skip_step=settings.skip_step,
            relay=target.relay,
            recheck_seconds=settings.list_recheck_seconds if target.relay else settings.list_hosts_recheck_seconds,
            # the hosts of a job were named by an operator
            most=settings.list_host_repos if target.host is not None and target.job is None else None,
            first_wait=settings.list_retry_seconds,
            longest_wait=60.0 if target.relay else LONGEST_RETRY_SECONDS,
        )

    def problems(self) -> str:
        """Standing relays that cannot be listed; a PDS that cannot is no problem of ours, and a job says it itself."""
        return "; ".join(
            f"{one.target.url}: {one.problem}"
            for one in list(self.upstreams.values())
            if one.target.relay and one.target.job is None and one.problem
        )

    def follow(self, target: Target, stored: Stored | None) -> None:
        """List one more target, from where it stood."""

        def add() -> None:
            if stored is not None:
                self._stored[target.key] = stored
            self._new.put_nowait(target)

        self._call(add)

    def ask_all_pdses(self) -> None:
        """List every PDS that a relay names."""
        self._call(self.pdses_asked.set)

    def ask_relist(self, key: str) -> None:
        """List it anew from its first page, as soon as its settings allow."""

        def ask(upstream: Upstream) -> None:
            upstream.relist = True

        self._tell(key, ask)

    def ask_fill(self, due: Range) -> None:
        """Go back to a skipped range when the listing is at its end."""

        def ask(upstream: Upstream) -> None:
            if upstream.state.done and not upstream.fills and upstream.fill_at <= self._clock():
                upstream.fills[due.id] = due

        self._tell(due.upstream, ask)

    def ask_now(self, key: str) -> None:
        """Its wait is over: an operator, or the job's own back-off, says so."""

        def ask(upstream: Upstream) -> None:
            upstream.problem, upstream.throttled_until, upstream.hurry = None, 0.0, True

        self._tell(key, ask)

    def _tell(self, key: str, change: Callable[[Upstream], None]) -> None:
        def told() -> None:
            upstream = self.upstreams.get(key)
            if upstream is not None:
                change(upstream)
                upstream.wake.set()

        self._call(told)

    async def _main(self) -> None:
        async with open_session(self._settings) as session, asyncio.TaskGroup() as group:
            pager = Pager(self._settings, session)
            for url in self._settings.relays:
                self._follow(group, pager, Target(url, url, relay=True))
            group.create_task(self._find_hosts(group, pager))
            while True:
                self._follow(group, pager, await self._new.get())

    async def _find_hosts(self, group: asyncio.TaskGroup, pager: Pager) -> None:
        """Follow every PDS that a relay names, new ones too."""
        if not self._settings.list_hosts:
            await self.pdses_asked.wait()

        def found(relay: str, urls: list[str]) -> None:
            room = MAX_UPSTREAMS - len(self.upstreams)
            new = [url for url in urls if url not in self.upstreams]
            if len(new) > room:
                metrics.INGEST_ERRORS.labels(FLOW, "too_many_hosts").inc(len(new) - room)
            self.hosts[relay] = [url for url in urls if url in self.upstreams] + new[:room]
            for url in new[:room]:
                self._follow(group, pager, Target(url, url))

        await follow_hosts(pager, self._settings.relays, self._settings.list_recheck_seconds, found)

    def _follow(self, group: asyncio.TaskGroup, pager: Pager, target: Target) -> None:
        if target.key in self.upstreams:
            return
        fresh = Listing(size=self.policy(target).page_size, began=self._clock())
        stored = self._stored.get(target.key)
        upstream = Upstream(target, fresh if stored is None else _restored(stored, fresh))
        self.upstreams[target.key] = upstream
        group.create_task(self._list(pager, upstream))

    async def _list(self, pager: Pager, upstream: Upstream) -> None:
        """List one upstream, for ever; what belongs to a job once, and from then on only its skipped ranges."""
        policy, target = self.policy(upstream.target), upstream.target
        until = 0.0
        while True:
            await self._halt(upstream)
            if upstream.fills and upstream.state.done:
                await self._fill(pager, upstream, policy)
            if target.job is not None and upstream.state.done:
                upstream.hurry = False
                await self._wait(upstream, self._clock() + policy.recheck_seconds)
                continue
            if self._is_due_anew(upstream):
                upstream.state, upstream.relist = restart(upstream.state, self._clock(), policy), False
                logger.info("listing anew", extra={"upstream": target.key})
                metrics.CURSOR_RESETS.labels(target.label).inc()
                await self.queue.put(self._item(upstream, []))
            elif self._clock() < until and not upstream.hurry:
                await self._wait(upstream, until)
                continue
            upstream.hurry = False
            until = await self._step(pager, upstream, policy)

    async def _step(self, pager: Pager, upstream: Upstream, policy: Policy) -> float:
        """One request and what it means; when the next one may follow."""
        target = upstream.target
        outcome = await self._page(pager, upstream, upstream.state.cursor, upstream.state.size)
        later = upstream.state.passes > 0
        decision = decide(upstream.state, outcome, self._clock(), policy)
        changed = decision.state.cursor != upstream.state.cursor or decision.state.done != upstream.state.done
        upstream.state, upstream.problem = decision.state, decision.stuck or decision.state.cut or None
        throttled = isinstance(outcome, Failure) and outcome.trouble is Trouble.THROTTLED
        upstream.throttled_until = decision.wait_until if throttled else 0.0
        if isinstance(outcome, Failure):
            metrics.INGEST_ERRORS.labels(FLOW, outcome.trouble.value).inc()
            if decision.skip is not None or changed:
                skips: list[Fact] = [] if decision.skip is None else [(target.key, decision.skip)]
                await self.queue.put(self._item(upstream, [], skips))
        elif decision.stuck and not decision.ended:
            metrics.INGEST_ERRORS.labels(FLOW, "too_many_repos").inc()
            logger.warning("a PDS's list is read no further", extra={"upstream": target.key, "why": decision.stuck})
        else:
            await self.queue.put(self._item(upstream, outcome.entries, later=later))
        if decision.ended:
            self._ended(target, decision)
        return decision.wait_until

    def _ended(self, target: Target, decision: Decision) -> None:
        metrics.LIST_DONE.labels(target.label).set(1)
        if decision.stuck:
            metrics.INGEST_ERRORS.labels(FLOW, "pass_cut").inc()
            logger.warning("a listing has no end", extra={"upstream": target.key, "why": decision.stuck})

    async def _halt(self, upstream: Upstream) -> None:
        while upstream.target.key in self.halted:
            await _nap(upstream, HALTED_SECONDS)

    def _is_due_anew(self, upstream: Upstream) -> bool:
        """A pass is never given up half-way, or a network too large for one interval would never be listed whole."""
        age = self._clock() - upstream.state.began
        limit = self._settings.gap_relist_seconds if upstream.relist else self._settings.list_relist_seconds
        return upstream.target.job is None and upstream.state.done and age >= limit

    async def _wait(self, upstream: Upstream, until: float) -> None:
        """Until that time, or until there is something else to do."""
        while (left := until - self._clock()) > 0 and not upstream.hurry:
            if (upstream.relist and self._is_due_anew(upstream)) or (upstream.fills and upstream.state.done):
                return
            await _nap(upstream, min(left, LOOK_SECONDS) if upstream.relist else left)

    async def _page(self, pager: Pager, upstream: Upstream, cursor: str, size: int) -> Page | Failure:
        target = upstream.target
        if target.relay:
            page = await pager.repos(target.url, cursor, size)
        else:
            async with self._turns:
                page = await pager.repos(target.url, cursor, size, target.collection)
        if not isinstance(page, Failure) and page.rejected:
            metrics.REJECTED.labels(FLOW, "bad_entry").inc(page.rejected)
        return page

    def _item(
        self, upstream: Upstream, entries: list[Entry], facts: list[Fact] | None = None, *, later: bool = False
    ) -> Listed:
        return Listed(upstream.target.key, upstream.target.host, entries, upstream.state, facts or [], later)

    async def _fill(self, pager: Pager, upstream: Upstream, policy: Policy) -> None:
        """One round of each skipped range that is due: read what can be read, and shrink it to what cannot."""
        key, host, state = upstream.target.key, upstream.target.host, upstream.state
        while upstream.fills:
            _, gone = upstream.fills.popitem()
            upstream.fill_at = float("inf")  # else the same range is asked for meanwhile
            fill = begin(gone.from_cursor, gone.to_cursor, policy.page_size, gone.retry_count)
            while (piece := fill.next()) is not None:
                outcome = await self._page(pager, upstream, piece.from_cursor, piece.size)
                if isinstance(outcome, Failure):
                    metrics.INGEST_ERRORS.labels(FLOW, outcome.trouble.value).inc()
                    fill.failed(piece, outcome)
                    await asyncio.sleep(policy.first_wait)
                    continue
                fill.answered(piece, outcome)
                if policy.most is not None and state.entries + fill.entries > policy.most:
                    fill.pending.append(piece)
                    fill.detail, fill.stopped = f"it lists more than {policy.most} repos", True
                    break
                await self.queue.put(Listed(key, host, outcome.entries, None))
            left = fill.left()
            fact = (
                Narrowed(gone.id, left, gone.retry_count, fill.detail or "not read to its end")
                if left
                else Filled(gone.id)
            )
            # a list that ends in a skipped range is followed from its last page on
            ahead = fill.furthest if fill.furthest and reached(fill.furthest, state.cursor) else state.cursor
            moved = ahead != state.cursor
            state = replace(
                state, cursor=ahead, safe=ahead if moved else state.safe, entries=state.entries + fill.entries
            )
            upstream.state = state
            upstream.fill_at = self._clock() + FILL_REST * policy.first_wait * max(1, fill.failures)
            await self.queue.put(Listed(key, host, [], state if moved else None, [(key, fact)]))


async def _nap(upstream: Upstream, seconds: float) -> None:
    """So long, or until somebody wakes it."""
    upstream.wake.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await upstream.wake.wait()


def _restored(stored: Stored, fresh: Listing) -> Listing:
    """A listing as it was stored; what is missing or odd in its detail is as in a fresh one."""
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
