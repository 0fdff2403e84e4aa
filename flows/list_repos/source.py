"""Listings of relays and PDSes: the source of `flows.list_repos.flow`.

Pages come from a background loop (`flows.list_repos.crawler`). A page's repos are committed as rows, then their messages
acknowledged, then the listing's cursor moves, in one transaction with the skipped ranges it passed and the counters of its
job (`flows.list_repos.listing_jobs`). Now and then the flow's thread looks for what operators want of jobs, and for losses to go
back to (`flows.list_repos.gap_recovery`).
"""

import time
from typing import Any

import psycopg
from typing_extensions import override

from connectors.kafka.back_pressure import HighWater
from connectors.postgres import stream_cursors as cursors
from connectors.postgres.connection import own_transaction, tuples
from connectors.postgres.stream_cursors import CursorStore
from connectors.runtime.checkpointed import CheckpointedPartition, CheckpointedSource
from connectors.runtime.patience import patiently
from connectors.runtime.process import Health
from flows.list_repos.crawler import FLOW, LOOK_SECONDS, Listed, Listings
from flows.list_repos.gap_recovery import Losses, write_fact
from flows.list_repos.listing_jobs import ListingJobs
from schemas.settings import Settings
from schemas.sql import queries
from steps.listing.paginator import Listing
from steps.listing.progress import Fact, Standing, Tally

SQL = queries("listing")
POLL_PAGES = 4
IDLE_AFTER_SECONDS = 1.0


Position = tuple[int, dict[str, Listing]]


class CommitUnknown(Exception):
    """Nobody can say whether the last transaction was committed; the process starts again."""


class ListingPartition(CheckpointedPartition[Listed, Position]):
    """Pages of all listings; a position is the number of pages polled, and the state of every listing after them."""

    def __init__(self, settings: Settings, health: Health, standing: Standing, jobs: ListingJobs) -> None:
        super().__init__(health)
        self._settings = settings
        self._standing = standing
        self._store = CursorStore(settings, FLOW)
        self._database = tuples(settings, "sluice list_repos")
        self._durable: dict[str, Listing] = {}
        self._jobs = jobs
        self._pressure = HighWater(settings, "repo_backfill", "backfill")
        self._losses = Losses(settings, self._database)
        self._look_at = 0.0
        self._polled_at = time.monotonic()
        self._drained = False
        self._losses.gaps()
        self._listings = Listings(settings, self._store.load(), self._losses.clock)
        self._jobs.look(
            self._database(), self._store, self._listings, self._losses.clock()
        )  # before the first page: a job may be paused
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
            patiently(self._look, self.health)
        pages = self._listings.queue.take(POLL_PAGES)
        self._report(bool(pages))
        return pages

    @override
    def position(self) -> Position | None:
        return (self._standing.notes, dict(self._standing.positions)) if self._standing.notes else None

    @override
    def commit(self, position: Position) -> None:
        # All that was emitted is durable by now, also what `position` was taken too early for: cursor and counts are moved by
        # the same pages, or a page that is read again after a crash would count twice.
        listings = dict(self._standing.positions)
        tallies = self._standing.take_tallies()
        facts = self._standing.take_facts()
        ended = self._standing.take_ended()
        try:
            self._write(listings, tallies, facts, ended)
        except psycopg.OperationalError:
            self._standing.give_back(tallies, facts, ended)  # this is called again
            self._jobs.forget([key for key in listings if self._listings.upstreams[key].target.job is None])
            raise
        self._durable = listings

    def _write(
        self, position: dict[str, Listing], tallies: dict[str, Tally], facts: list[Fact], ended: set[str]
    ) -> None:
        db, written = self._database(), False
        try:
            with own_transaction(db):
                self._write_all(db, position, tallies, facts, ended)
                written = True
        except psycopg.OperationalError as err:
            if written:  # the connection was lost within the commit itself: written again, a job would count twice
                raise CommitUnknown(f"{err}; the listings go on from what the database holds") from err
            raise

    def _write_all(
        self,
        db: psycopg.Connection[Any],
        position: dict[str, Listing],
        tallies: dict[str, Tally],
        facts: list[Fact],
        ended: set[str],
    ) -> None:
        for upstream, fact in facts:
            write_fact(db, upstream, fact)
        for upstream in sorted(tallies.keys() - position.keys()):  # of a fill, before its listing has a place
            self._standing.tallies[upstream] = tallies[upstream]
        for upstream in sorted(position):
            state = position[upstream]
            if state == self._durable.get(upstream) and upstream not in tallies and upstream not in ended:
                continue
            kept = ("done", "began", "safe", "entries", "cut", "rounds")
            detail = {"pass": state.passes} | {name: getattr(state, name) for name in kept}
            cursors.put(db, FLOW, upstream, state.cursor, detail)
            self._jobs.advance(db, upstream, state, tallies.get(upstream))
            target = self._listings.upstreams[upstream].target
            if target.job is not None:
                continue
            if not target.relay:
                host = {"host": upstream, "cursor": state.cursor, "pass": state.passes, "done": state.done}
                db.execute(SQL["host_listed"], host)
            elif state.done and not state.cut:
                self._losses.answer(db, upstream, state)

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
        self._jobs.close()
        self._database.close()

    def _look(self) -> None:
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._losses.look(self._listings)
        self._jobs.look(self._database(), self._store, self._listings, self._losses.clock())

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


def listing_source(
    settings: Settings, health: Health, standing: Standing, jobs: ListingJobs
) -> CheckpointedSource[Listed]:
    """Pages of all relays of the settings, and of their PDSes where `list_hosts` is on."""
    return CheckpointedSource(lambda: ListingPartition(settings, health, standing, jobs))
