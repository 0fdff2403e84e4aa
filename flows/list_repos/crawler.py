"""All listings of the flow, in one event loop with its own thread: one `ListingLoop` per target.

Pages leave through a bounded queue. The flow's thread adds targets (`follow`), sets which are paused (`paused`), and makes
other requests (`request_*`).
"""

import asyncio
from collections.abc import Callable

from connectors.atproto.host_lists import follow_hosts
from connectors.atproto.relay import Pager
from connectors.postgres.stream_cursors import Stored
from connectors.runtime import metrics
from connectors.runtime.background_loop import Handover
from connectors.runtime.loop_environment import LoopEnvironment
from flows.list_repos.listing_loop import FLOW, CrawlContext, DueRange, ListedPage, ListingLoop
from schemas.settings import Settings
from steps.job_states import Target

QUEUE_ENTRIES = 8000
MAX_UPSTREAMS = 20_000  # a relay may name any number of hosts; the network has some thousands


class Crawler:
    """Runs the listings. `stored`: positions by target key; `clock`: seconds since 1970."""

    def __init__(
        self,
        settings: Settings,
        stored: dict[str, Stored],
        clock: Callable[[], float],
        environment: LoopEnvironment = LoopEnvironment(),  # noqa: B008  # it is frozen
    ) -> None:
        self._settings = settings
        self._stored = stored
        self._clock = clock
        self.loops: dict[str, ListingLoop] = {}
        self.paused: frozenset[str] = frozenset()  # keys of paused jobs' listings; replaced by the flow's thread
        self.hosts: dict[str, list[str]] = {}  # relay → PDSes to store; taken by the flow's thread
        self.list_pdses = asyncio.Event()  # set when a relay's range cannot be filled; overrides the settings
        self.queue: Handover[ListedPage] = Handover(QUEUE_ENTRIES, lambda page: 1 + len(page.entries))
        self._new: asyncio.Queue[Target] = asyncio.Queue()
        self._permits = asyncio.Semaphore(settings.tuning.list_hosts_at_once)
        self._session = environment.session
        self._background = environment.background(f"{FLOW} pages", self._main)
        self.start, self.check = self._background.start, self._background.check
        self.cancel, self._call = self._background.cancel, self._background.call

    def problems(self) -> str:
        """Relays of the settings that cannot be listed. Failing PDSes are left out; jobs report their own problems."""
        return "; ".join(
            f"{one.target.url}: {one.problem}"
            for one in list(self.loops.values())
            if one.target.relay and one.target.job is None and one.problem
        )

    def follow(self, target: Target, stored: Stored | None) -> None:
        """List one more target, from its stored position."""

        def add() -> None:
            if stored is not None:
                self._stored[target.key] = stored
            self._new.put_nowait(target)

        self._call(add)

    def request_all_pdses(self) -> None:
        """List every PDS that a relay names."""
        self._call(self.list_pdses.set)

    def request_relist(self, key: str) -> None:
        """Restart the listing from its first page, as soon as the settings allow."""

        def change(loop: ListingLoop) -> None:
            loop.relist = True

        self._change(key, change)

    def request_fill(self, due: DueRange) -> None:
        """Fill a skipped range when the listing is at its end."""

        def change(loop: ListingLoop) -> None:
            if loop.state.done and not loop.fills and loop.fill_at <= self._clock():
                loop.fills[due.id] = due

        self._change(due.upstream, change)

    def request_now(self, key: str) -> None:
        """End the listing's wait: an operator resumed the job, or its back-off is over."""

        def change(loop: ListingLoop) -> None:
            loop.problem, loop.throttled_until, loop.hurry = None, 0.0, True

        self._change(key, change)

    def _change(self, key: str, change: Callable[[ListingLoop], None]) -> None:
        def changed() -> None:
            loop = self.loops.get(key)
            if loop is not None:
                change(loop)
                loop.wake.set()

        self._call(changed)

    async def _main(self) -> None:
        async with self._session(self._settings) as session, asyncio.TaskGroup() as group:
            pager = Pager(self._settings, session)
            for url in self._settings.relays:
                self._follow(group, pager, Target(url, url, relay=True))
            group.create_task(self._find_hosts(group, pager))
            while True:
                self._follow(group, pager, await self._new.get())

    async def _find_hosts(self, group: asyncio.TaskGroup, pager: Pager) -> None:
        """Follow every PDS that a relay names, now or later."""
        if not self._settings.crawl_hosts:
            await self.list_pdses.wait()

        def found(relay: str, urls: list[str]) -> None:
            room = MAX_UPSTREAMS - len(self.loops)
            new = [url for url in urls if url not in self.loops]
            if len(new) > room:
                metrics.UPSTREAM_ERRORS.labels(FLOW, "too_many_hosts").inc(len(new) - room)
            self.hosts[relay] = [url for url in urls if url in self.loops] + new[:room]
            for url in new[:room]:
                self._follow(group, pager, Target(url, url))

        await follow_hosts(pager, self._settings.relays, self._settings.tuning.list_recheck_seconds, found)

    def _follow(self, group: asyncio.TaskGroup, pager: Pager, target: Target) -> None:
        if target.key not in self.loops:
            context = CrawlContext(self._settings, pager, self.queue, self._permits, self._clock, lambda: self.paused)
            self.loops[target.key] = ListingLoop(context, target, self._stored.get(target.key))
            group.create_task(self.loops[target.key].run())
