"""Listings of relays and PDSes: the source of `flows.list_repos`.

A background loop runs one paginator per upstream (`steps.paginator`), keyed by its full URL, and hands pages over through a
bounded queue. A page's repos are committed as rows, then their messages acknowledged, then the listing's cursor moves, in one
transaction with the skipped ranges it passed and the counters of its job. The loop also goes back to skipped ranges, asks
the PDSes where a relay's range stays closed, and lists a relay anew when its stream has lost events (`sluice.stream_gap`).
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from typing_extensions import override

from connectors import metrics
from connectors.back_pressure import HighWater
from connectors.background import Background, Handover
from connectors.checkpointed import CheckpointedPartition, CheckpointedSource
from connectors.cursors import CursorStore, Stored
from connectors.http import open_session
from connectors.process import Health
from connectors.relay import Pager
from schemas.settings import Settings
from schemas.sql import queries
from steps.paginator import Entry, Failure, Listing, Policy, Skip, Trouble, decide, restart
from steps.skip_ahead import reached
from steps.standing import Fact, Filled, Narrowed, Standing

FLOW = "list_repos"
SQL = queries("listing")
QUEUE_ENTRIES = 8000
POLL_PAGES = 4
LOOK_SECONDS = 2.0  # how often gaps and skipped ranges are looked for
IDLE_AFTER_SECONDS = 1.0
FILL_FIRST_SECONDS = 30.0
FILL_LONGEST_SECONDS = 3600.0
ASK_PDSES_AFTER = 3  # tries of a relay's range before all its PDSes are listed in its place

logger = logging.getLogger(FLOW)


@dataclass(frozen=True, slots=True)
class Listed:
    """A page, or only a change of a listing. `host`: the PDS that was listed, None for a relay; `state`: None in a fill."""

    upstream: str
    host: str | None
    entries: list[Entry]
    state: Listing | None
    facts: list[Fact] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Range:
    """A skipped range that is due."""

    id: int
    upstream: str
    from_cursor: str
    to_cursor: str
    retry_count: int


class Upstream:
    """One listing, in the loop. `wake` interrupts its wait; the flow's thread sets `relist` and `fills` through the loop."""

    def __init__(self, url: str, relay: bool, state: Listing) -> None:
        self.url = url
        self.relay = relay
        self.state = state
        self.relist = False
        self.fills: dict[int, Range] = {}
        self.wake = asyncio.Event()
        self.problem: str | None = None


class Listings:
    """All listings of a flow, in one background loop."""

    def __init__(self, settings: Settings, stored: dict[str, Stored], clock: Callable[[], float]) -> None:
        self._settings = settings
        self._stored = stored
        self._clock = clock
        self.upstreams: dict[str, Upstream] = {}
        self.hosts: dict[str, list[str]] = {}  # relay → PDSes to write down, taken by the flow's thread
        self.pdses_asked = asyncio.Event()  # a range of a relay stays closed: list the PDSes, whatever the settings say
        self.queue: Handover[Listed] = Handover(QUEUE_ENTRIES, lambda item: 1 + len(item.entries))
        self._turns = asyncio.Semaphore(settings.list_hosts_at_once)
        self._background = Background(f"{FLOW} pages", self._main)
        self.start, self.check = self._background.start, self._background.check
        self.cancel, self.call = self._background.cancel, self._background.call

    def policy(self, relay: bool) -> Policy:
        """How a listing of a relay, or of a PDS, behaves."""
        settings = self._settings
        return Policy(
            page_size=settings.list_page_size,
            skip_after=settings.skip_after_failures,
            skip_step=settings.skip_step,
            relay=relay,
            recheck_seconds=settings.list_recheck_seconds if relay else settings.list_hosts_recheck_seconds,
            first_wait=settings.list_retry_seconds,
        )

    def problems(self) -> str:
        """Relays that cannot be listed; a PDS that cannot is no problem of ours."""
        return "; ".join(
            f"{one.url}: {one.problem}" for one in list(self.upstreams.values()) if one.relay and one.problem
        )

    async def _main(self) -> None:
        async with open_session(self._settings) as session, asyncio.TaskGroup() as group:
            pager = Pager(self._settings, session)
            for url in self._settings.relays:
                self._follow(group, pager, url, relay=True)
            group.create_task(self._find_hosts(group, pager))

    async def _find_hosts(self, group: asyncio.TaskGroup, pager: Pager) -> None:
        """Follow every PDS that a relay names, new ones too."""
        if not self._settings.list_hosts:
            await self.pdses_asked.wait()
        while True:
            wait = self._settings.list_recheck_seconds
            for relay in self._settings.relays:
                found = await pager.hosts(relay)
                if isinstance(found, Failure):
                    metrics.INGEST_ERRORS.labels(FLOW, f"hosts_{found.trouble}").inc()
                    wait = min(wait, 10.0)
                    continue
                self.hosts[relay] = found
                for url in found:
                    if url not in self.upstreams:
                        self._follow(group, pager, url, relay=False)
            await asyncio.sleep(wait)

    def _follow(self, group: asyncio.TaskGroup, pager: Pager, url: str, *, relay: bool) -> None:
        fresh = Listing(size=self._settings.list_page_size, began=self._clock())
        stored = self._stored.get(url)
        upstream = Upstream(url, relay, fresh if stored is None else _restored(stored, fresh))
        self.upstreams[url] = upstream
        group.create_task(self._list(pager, upstream))

    async def _list(self, pager: Pager, upstream: Upstream) -> None:
        """List one upstream, for ever."""
        policy = self.policy(upstream.relay)
        while True:
            if self._is_due_anew(upstream):
                upstream.state, upstream.relist = restart(upstream.state, self._clock(), policy), False
                logger.info("listing anew", extra={"upstream": upstream.url})
                metrics.CURSOR_RESETS.labels(upstream.url if upstream.relay else "pds").inc()
                await self.queue.put(self._item(upstream, []))
            outcome = await self._page(pager, upstream, upstream.state.cursor, upstream.state.size)
            decision = decide(upstream.state, outcome, self._clock(), policy)
            changed = decision.state.cursor != upstream.state.cursor or decision.state.done != upstream.state.done
            upstream.state, upstream.problem = decision.state, decision.stuck
            if isinstance(outcome, Failure):
                metrics.INGEST_ERRORS.labels(FLOW, outcome.trouble.value).inc()
                if decision.skip is not None or changed:
                    skips: list[Fact] = [] if decision.skip is None else [(upstream.url, decision.skip)]
                    await self.queue.put(self._item(upstream, [], skips))
            else:
                await self.queue.put(self._item(upstream, outcome.entries))
            if decision.ended:
                metrics.LIST_DONE.labels(upstream.url if upstream.relay else "pds").set(1)
                await self._fill(pager, upstream, policy)
            await self._wait(upstream, decision.wait_until)

    def _is_due_anew(self, upstream: Upstream) -> bool:
        """A pass is never given up half-way, or a network too large for one interval would never be listed whole."""
        age = self._clock() - upstream.state.began
        limit = self._settings.gap_relist_seconds if upstream.relist else self._settings.list_relist_seconds
        return upstream.state.done and age >= limit

    async def _wait(self, upstream: Upstream, until: float) -> None:
        """Until that time, or until there is something else to do."""
        while (left := until - self._clock()) > 0 and not (upstream.relist and self._is_due_anew(upstream)):
            upstream.wake.clear()
            try:
                async with asyncio.timeout(min(left, LOOK_SECONDS) if upstream.relist else left):
                    await upstream.wake.wait()
            except TimeoutError:
                continue
            if upstream.fills and upstream.state.done:
                return

    async def _page(self, pager: Pager, upstream: Upstream, cursor: str, size: int) -> Any:
        if upstream.relay:
            page = await pager.repos(upstream.url, cursor, size)
        else:
            async with self._turns:
                page = await pager.repos(upstream.url, cursor, size)
        if not isinstance(page, Failure) and page.rejected:
            metrics.REJECTED.labels(FLOW, "bad_entry").inc(page.rejected)
        return page

    def _item(self, upstream: Upstream, entries: list[Entry], facts: list[Fact] | None = None) -> Listed:
        host = None if upstream.relay else upstream.url
        return Listed(upstream.url, host, entries, upstream.state, facts or [])

    async def _fill(self, pager: Pager, upstream: Upstream, policy: Policy) -> None:
        """Go back to ranges that were stepped over: read what can be read of each."""
        while upstream.fills:
            _, gone = upstream.fills.popitem()
            host = None if upstream.relay else upstream.url
            cursor, size = gone.from_cursor, policy.page_size
            while True:
                outcome = await self._page(pager, upstream, cursor, size)
                if isinstance(outcome, Failure):
                    if outcome.trouble is Trouble.BAD_ANSWER and size > 1:
                        size //= 2
                        continue
                    rest = Narrowed(gone.id, cursor, gone.retry_count, outcome.detail)
                    await self.queue.put(Listed(upstream.url, host, [], None, [(upstream.url, rest)]))
                    break
                following = outcome.cursor
                if following is None or following == cursor or reached(following, gone.to_cursor):
                    facts: list[Fact] = [(upstream.url, Filled(gone.id))]
                    await self.queue.put(Listed(upstream.url, host, outcome.entries, None, facts))
                    break
                await self.queue.put(Listed(upstream.url, host, outcome.entries, None))
                cursor = following


def _restored(stored: Stored, fresh: Listing) -> Listing:
    """A listing as it was stored; what is missing or odd in its detail is as in a fresh one."""
    detail = stored.detail
    began, passes, safe = detail.get("began"), detail.get("pass"), detail.get("safe")
    return replace(
        fresh,
        cursor=stored.position,
        safe=safe if isinstance(safe, str) else stored.position,
        passes=passes if isinstance(passes, int) else 0,
        done=detail.get("done") is True,
        began=float(began) if isinstance(began, int | float) else fresh.began,
    )


class Jobs:
    """The backfill_job of every listing: found, or opened when its first page arrives."""

    def __init__(self, settings: Settings) -> None:
        self._relays = settings.relays
        self._ids: dict[str, int] = {}

    def of(self, db: psycopg.Connection[tuple[Any, ...]], upstream: str) -> int:
        """Id of the job that lists an upstream."""
        if upstream not in self._ids:
            source = json.dumps({"relay" if upstream in self._relays else "pds": upstream})
            row = db.execute(SQL["open_job"], {"name": f"list {upstream}", "source": source}).fetchone()
            self._ids[upstream] = row[0] if row else 0
        return self._ids[upstream]


class ListingPartition(CheckpointedPartition[Listed, dict[str, Listing]]):
    """Pages of all listings; a position is the state of every listing after the pages polled."""

    def __init__(self, settings: Settings, health: Health, standing: Standing, jobs: "Jobs") -> None:
        super().__init__(health)
        self._settings = settings
        self._standing = standing
        self._store = CursorStore(settings, FLOW)
        self._durable: dict[str, Listing] = {}
        self._jobs = jobs
        self._pressure = HighWater(settings, "repo_backfill", "backfill")
        self._offset = 0.0  # the database's clock less ours
        self._look_at = 0.0
        self._polled_at = time.monotonic()
        self._drained = False
        self._seen_hosts_of: set[str] = set()  # relays whose PDSes this process has asked for and written down
        self._read_gaps()
        self._listings = Listings(settings, self._store.load(), self._clock)
        self._pressure.start()
        self._listings.start()

    @override
    def poll(self) -> list[Listed]:
        self._listings.check()
        if self._drained:
            return []
        if why := self._pressure.paused:
            self.health.report("paused", why)
            return []
        if time.monotonic() >= self._look_at:
            self._look()
        pages = self._listings.queue.take(POLL_PAGES)
        self._report(bool(pages))
        return pages

    @override
    def position(self) -> dict[str, Listing] | None:
        return dict(self._standing.positions) or None

    @override
    def commit(self, position: dict[str, Listing]) -> None:
        tallies = self._standing.take_tallies()
        facts = self._standing.take_facts()
        ended = self._standing.take_ended()
        db = self._store.connection()
        with db.transaction():
            for upstream, fact in facts:
                _write(db, upstream, fact)
            for upstream in sorted(tallies.keys() - position.keys()):  # of pages polled after the position was taken
                self._standing.tallies[upstream] = tallies[upstream]
            for upstream in sorted(position):
                state = position[upstream]
                if state == self._durable.get(upstream) and upstream not in tallies and upstream not in ended:
                    continue
                detail = {"pass": state.passes, "done": state.done, "began": state.began, "safe": state.safe}
                self._store.put(upstream, state.cursor, detail)
                tally = tallies.get(upstream)
                values = {
                    "id": self._jobs.of(db, upstream),
                    "listed": tally.listed if tally else 0,
                    "queued": tally.queued if tally else 0,
                    "duplicates": tally.duplicates if tally else 0,
                    "checkpoint": json.dumps({"cursor": state.cursor, "pass": state.passes, "done": state.done}),
                    "done": state.done,
                }
                db.execute(SQL["advance_job"], values)
                if upstream not in self._settings.relays:
                    host = {"host": upstream, "cursor": state.cursor, "pass": state.passes, "done": state.done}
                    db.execute(SQL["host_listed"], host)
                elif state.done:
                    self._answer_gaps(db, upstream, state)
        self._durable = position

    @override
    def drain(self) -> None:
        """Pages that still wait are left to the next start: no position covers them."""
        self._listings.cancel()
        self._drained = True

    @override
    def close(self) -> None:
        self._listings.cancel()
        self._pressure.stop()
        self._store.close()

    def _clock(self) -> float:
        return time.time() + self._offset

    def _read_gaps(self) -> dict[str, float]:
        """Upstream → when its newest unanswered loss was noticed, by the database's clock, which is ours from here on."""
        rows = self._store.connection().execute(SQL["gaps"]).fetchall()
        self._offset = rows[-1][2] - time.time()
        return {upstream: noticed for upstream, noticed, _ in rows if noticed is not None}

    def _look(self) -> None:
        """Losses to answer, skipped ranges to go back to, hosts to write down."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        gaps = self._read_gaps()
        upstreams = self._listings.upstreams
        for url in self._settings.relays:
            noticed = max((at for gap, at in gaps.items() if self._answers(url, gap)), default=0.0)
            relay = upstreams.get(url)
            if relay is not None and noticed > relay.state.began and not relay.relist:
                self._listings.call(lambda relay=relay: _ask_relist(relay))  # type: ignore[misc]  # bound now
        values = {"upstreams": list(upstreams)}
        for row in self._store.connection().execute(SQL["due_ranges"], values).fetchall():
            due = Range(*row)
            self._listings.call(lambda due=due: _ask_fill(upstreams[due.upstream], due))  # type: ignore[misc]  # bound now
        while self._listings.hosts:
            relay_url, hosts = self._listings.hosts.popitem()
            self._store.connection().execute(SQL["see_hosts"], {"relay": relay_url, "hosts": sorted(set(hosts))})
            self._seen_hosts_of.add(relay_url)
        self._ask_pdses()

    def _ask_pdses(self) -> None:
        """Ranges of relays that stay closed: what all PDSes have listed since they were stepped over is what they held."""
        db = self._store.connection()
        values: dict[str, Any] = {"relays": self._settings.relays, "tries": ASK_PDSES_AFTER}
        if db.execute(SQL["stubborn_ranges"], values).fetchone() == (0,):
            return
        self._listings.call(self._listings.pdses_asked.set)
        for url, from_cursor in db.execute(SQL["fill_by_pdses"], {**values, "relays": list(self._seen_hosts_of)}):
            logger.info("skipped range filled by the PDSes", extra={"upstream": url, "from_cursor": from_cursor})

    def _answers(self, relay: str, gap: str) -> bool:
        """A relay's listing answers its own losses; the first relay's also those of nobody that we list."""
        return gap == relay or (relay == self._settings.relays[0] and gap not in self._settings.relays)

    def _answer_gaps(self, db: psycopg.Connection[tuple[Any, ...]], upstream: str, state: Listing) -> None:
        values = {
            "upstream": upstream,
            "began": state.began,
            "others": upstream == self._settings.relays[0],
            "known": self._settings.relays,
        }
        db.execute(SQL["answer_gaps"], values)

    def _report(self, has_pages: bool) -> None:
        now = time.monotonic()
        if has_pages:
            self._polled_at = now
        problems = self._listings.problems()
        if problems:
            self.health.report("failing", problems)
        elif now - self._polled_at < IDLE_AFTER_SECONDS:
            self.health.report("working")
        else:
            self.health.report("idle")


def _ask_relist(upstream: Upstream) -> None:
    upstream.relist = True
    upstream.wake.set()


def _ask_fill(upstream: Upstream, due: Range) -> None:
    if upstream.state.done and not upstream.fills:
        upstream.fills[due.id] = due
        upstream.wake.set()


def _write(db: psycopg.Connection[tuple[Any, ...]], upstream: str, fact: Skip | Filled | Narrowed) -> None:
    if isinstance(fact, Skip):
        values: dict[str, Any] = {
            "upstream": upstream,
            "from_cursor": fact.from_cursor,
            "to_cursor": fact.to_cursor,
            "reason": fact.reason,
            "delay": FILL_FIRST_SECONDS,
        }
        db.execute(SQL["skip"], values)
    elif isinstance(fact, Filled):
        db.execute(SQL["fill"], {"id": fact.id})
    else:
        delay = min(FILL_FIRST_SECONDS * 2**fact.retry_count, FILL_LONGEST_SECONDS)
        values = {"id": fact.id, "from_cursor": fact.from_cursor, "delay": delay, "reason": fact.reason}
        db.execute(SQL["narrow"], values)


def listing_source(settings: Settings, health: Health, standing: Standing, jobs: Jobs) -> CheckpointedSource[Listed]:
    """Pages of all relays of the settings, and of their PDSes where `list_hosts` is on."""
    return CheckpointedSource(lambda: ListingPartition(settings, health, standing, jobs))
