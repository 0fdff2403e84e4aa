"""The source of the list_repos flow: pages of all listings, and the commit of what they changed.

Pages come from the crawler (`crawler.py`). A page's repos are committed as rows (`discover`), then their messages are
acknowledged, then the listing's cursor moves: in one transaction with the skipped ranges that it passed and the counters of
its job (`listing_jobs.py`). Every CHECK_SECONDS the flow's thread reads the changes of jobs, and the gaps and skipped ranges
that are due (`gap_recovery.py`).
"""

from typing import Any, Protocol

import psycopg
from typing_extensions import override

from connectors.postgres import stream_cursors as cursors
from connectors.postgres.connection import own_transaction, tuple_database
from connectors.postgres.stream_cursors import CursorStore
from connectors.runtime import metrics
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.health import Health
from connectors.runtime.loop_environment import LoopEnvironment
from connectors.runtime.retry_database import retry_database
from flows.list_repos.crawler import Crawler
from flows.list_repos.gap_recovery import GapRecovery, write_fact
from flows.list_repos.listing_jobs import ListingJobs
from flows.list_repos.listing_loop import CHECK_SECONDS, FLOW, ListedPage
from schemas.settings import Settings
from schemas.sql import queries
from steps.listing.listing_progress import ListingProgress
from steps.listing.paginator import Listing, RangeSkipped

SQL = queries("listing")
POLL_PAGES = 4
IDLE_AFTER_SECONDS = 1.0
KEPT = ("done", "began", "safe", "entries", "cut", "rounds")  # of a listing's state, beside cursor and pass


class CommitUnknown(Exception):
    """It is unknown whether the last transaction was committed; the process restarts from the database's state."""


class Pressure(Protocol):
    """The part of HighWater that the source needs."""

    @property
    def paused(self) -> str | None:
        """Why no pages may be emitted, or None."""

    def stop(self, seconds: float = 0.0) -> None:
        """End the watching."""


class CrawlSource(CheckpointedPartition[ListedPage, ListingProgress]):
    """Pages of all listings. A position is what the pages emitted since the last commit change."""

    def __init__(
        self, settings: Settings, health: Health, jobs: ListingJobs, pressure: Pressure, environment: LoopEnvironment
    ) -> None:
        super().__init__(health)
        self._progress = ListingProgress()
        self._durable: dict[str, Listing] = {}
        self._store = CursorStore(settings, FLOW)
        self._database = tuple_database(settings, "sluice list_repos")
        self._jobs = jobs
        self._pressure = pressure
        self._monotonic = environment.clock
        self._gaps = GapRecovery(settings, self._database, self._monotonic)
        self._check_at = 0.0
        self._polled_at = self._monotonic()
        self._drained = False
        self._gaps.read()
        self._crawler = Crawler(settings, self._store.load(), self._gaps.clock, environment)
        self._check_jobs()  # before the first page: a job may be paused
        self._crawler.start()

    @override
    def poll(self) -> list[ListedPage]:
        self._crawler.check()
        if self._drained:
            return []
        if why := self._pressure.paused:
            self.health.report("paused", why)
            return []
        if self._monotonic() >= self._check_at:
            retry_database(self._check, self.health)
        pages = self._crawler.queue.take(POLL_PAGES)
        for page in pages:
            self._progress.add(page.upstream, page.state, page.facts, page.tally)
            for fact in page.facts:
                if isinstance(fact, RangeSkipped):
                    metrics.LISTING_SKIPS.labels(page.upstream.partition("#")[0] if page.host is None else "pds").inc()
        self._report(bool(pages))
        return pages

    @override
    def position(self) -> ListingProgress | None:
        return self._progress if self._progress.pages else None

    @override
    def commit(self, position: ListingProgress) -> None:
        """Its pages have passed `discover`, so their counts are complete. Nothing is polled between position and commit."""
        waiting = ListingProgress()
        try:
            self._commit(position, waiting)
        except psycopg.OperationalError:
            written = position.states.keys() | position.tallies().keys()
            self._jobs.forget([key for key in written if self._crawler.loops[key].target.job is None])
            raise
        self._durable |= position.states
        self._progress = waiting

    def _commit(self, position: ListingProgress, waiting: ListingProgress) -> None:
        db, written = self._database(), False
        try:
            with own_transaction(db):
                self._write(db, position, waiting)
                written = True
        except psycopg.OperationalError as err:
            if written:  # the connection was lost during the commit: a retry could count repos twice
                raise CommitUnknown(f"{err}; the listings continue from the state in the database") from err
            raise

    def _write(self, db: psycopg.Connection[Any], position: ListingProgress, waiting: ListingProgress) -> None:
        """`waiting` takes the counts of fills whose listing has no position yet: the next commit writes them."""
        for upstream, fact in position.facts:
            write_fact(db, upstream, fact)
        tallies = position.tallies()
        for upstream in sorted(position.states.keys() | tallies.keys()):
            durable = self._durable.get(upstream)
            state = position.states.get(upstream, durable)
            if state is None:
                waiting.counts.append((upstream, tallies[upstream]))
            elif state != durable or upstream in tallies or upstream in position.ended:
                cursors.put(db, FLOW, upstream, state.cursor, _detail(state))
                self._jobs.advance(db, upstream, state, tallies.get(upstream))
                self._write_end(db, upstream, state)

    def _write_end(self, db: psycopg.Connection[Any], upstream: str, state: Listing) -> None:
        target = self._crawler.loops[upstream].target
        if target.job is not None:
            return
        if not target.relay:
            host = {"host": upstream, "cursor": state.cursor, "pass": state.passes, "done": state.done}
            db.execute(SQL["host_listed"], host)
        else:
            self._gaps.resolve(db, upstream, state)

    @override
    def drain(self) -> None:
        """Pages in the queue are dropped: no position covers them, so the next process lists them again."""
        self._crawler.cancel()
        self._drained = True

    @override
    def close(self) -> None:
        self._crawler.cancel()
        self._pressure.stop()
        self._store.close()
        self._jobs.close()
        self._database.close()

    def _check(self) -> None:
        self._check_at = self._monotonic() + CHECK_SECONDS
        self._gaps.check(self._crawler)
        self._check_jobs()

    def _check_jobs(self) -> None:
        self._jobs.check(self._database(), self._store, self._crawler, self._gaps.clock())

    def _report(self, has_pages: bool) -> None:
        now = self._monotonic()
        if has_pages:
            self._polled_at = now
        problems = self._crawler.problems()
        if problems:
            self.health.report("failing", problems)
        elif now - self._polled_at < IDLE_AFTER_SECONDS:
            self.health.report("working")
        else:
            self.health.report("idle")


def _detail(state: Listing) -> dict[str, Any]:
    return {"pass": state.passes} | {name: getattr(state, name) for name in KEPT}
