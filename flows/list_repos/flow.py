"""Listings of relays and PDSes → repo_backfill.

    crawl ──▶ discover ──▶ repo_backfill

`crawl` requests pages. After every request it decides what follows: the next cursor, a wait, the end of the pass, or a
range to skip (`steps.listing.paginator`, `steps.listing.skip_ahead`). It decides in the source, because the next request
depends on it. `discover` commits a row in `sluice.repo` for every repo. The sink writes a message for each that is new.
Only then does the checkpoint move the listing's cursor. After a crash at any point the pages since the last checkpoint
are listed again, and no repo is queued twice.
"""

from collections.abc import Callable

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from connectors.kafka.back_pressure import HighWater
from connectors.kafka.producer import LogSink, Out
from connectors.postgres.repo_queue import Discovery, ListedRepo, RepoQueue
from connectors.postgres.sharded_queue import repo_queue
from connectors.runtime import metrics
from connectors.runtime.checkpointed import CheckpointedSource
from connectors.runtime.health import Health
from connectors.runtime.loop_environment import LoopEnvironment
from connectors.runtime.retry_database import retry_database
from flows.list_repos.listing_jobs import ListingJobs
from flows.list_repos.listing_loop import FLOW, ListedPage
from flows.list_repos.source import CrawlSource
from schemas import wire
from schemas.settings import Settings
from schemas.topics import REPO_BACKFILL
from steps.listing.list_page import ListEntry

TOPIC = REPO_BACKFILL


def build(crawl: Source[ListedPage], discover: Callable[[ListedPage], list[Out]], log: Sink[Out]) -> Dataflow:
    """The dataflow over any source of pages and any sink of messages."""
    flow = Dataflow(FLOW)
    pages = op.input("crawl", flow, crawl)
    tasks = op.flat_map("discover", pages, discover)
    op.output(TOPIC, tasks, log)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The dataflow with the relays, the database and the log of the settings."""
    jobs = ListingJobs(settings)

    def crawl() -> CrawlSource:
        pressure = HighWater(settings, TOPIC, "backfill")
        pressure.start()
        return CrawlSource(settings, health, jobs, pressure, LoopEnvironment())

    return build(CheckpointedSource(crawl), discoverer(repo_queue(settings), jobs, health), LogSink(settings))


def discoverer(queue: RepoQueue, jobs: ListingJobs, health: Health | None = None) -> Callable[[ListedPage], list[Out]]:
    """The `discover` step: commits the rows, returns the messages of the new ones, fills in the page's counts."""

    def discovered(page: ListedPage, listed: list[ListedRepo]) -> Discovery:
        # a job covers the repos that existed when it was created: what a later pass finds belongs to no job
        job = None if page.later else jobs.job_of(page.upstream)
        return queue.discover(listed, job, page.asked_at)

    def discover(page: ListedPage) -> list[Out]:
        listed = [repo for repo in (as_listed(page, entry) for entry in page.entries) if repo is not None]
        if not listed:
            return []
        found = retry_database(lambda: discovered(page, listed), health)
        page.tally.listed = len(page.entries)
        page.tally.queued = 0 if page.later else found.new
        page.tally.duplicates = found.known
        metrics.LISTED.labels("new").inc(found.new)
        metrics.LISTED.labels("known").inc(found.known)
        return [Out(TOPIC, task.did, wire.encode(task)) for task in found.tasks]

    return discover


def as_listed(page: ListedPage, entry: ListEntry) -> ListedRepo | None:
    """The trusted part of an entry. From a relay: rev and status. From a PDS: only that it hosts an active account.

    Anyone can run a PDS and list other people's DIDs as gone or with a high rev. Nor does a PDS's entry reopen an account
    before the PDS of its DID document has served it (`listed_reopens`).
    """
    if page.host is None:
        return ListedRepo(entry.did, entry.rev, entry.active, entry.status, None)
    return ListedRepo(entry.did, host=page.host) if entry.active else None
