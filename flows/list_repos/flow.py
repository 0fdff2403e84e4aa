"""listings → cursor → skip_ahead → discover → repo_backfill

Every repo of every listing becomes a row in `sluice.repo` and, if it is new, a message that asks for its backfill: first the
row, then the message, then the listing's cursor. A crash anywhere lists an epoch's pages again and queues nothing twice.
"""

from collections.abc import Callable

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.outputs import Sink

from connectors.kafka.producer import LogSink, Out
from connectors.postgres.repo_queue import Discovery, RepoQueue
from connectors.postgres.repo_queue import Listed as ListedRepo
from connectors.runtime import metrics
from connectors.runtime.patience import patiently
from connectors.runtime.process import Health
from flows.list_repos.crawler import FLOW, Listed
from flows.list_repos.listing_jobs import ListingJobs
from flows.list_repos.source import listing_source
from schemas import wire
from schemas.settings import Settings
from steps.listing.paginator import Entry, Skip
from steps.listing.progress import Standing

TOPIC = "repo_backfill"

Page = Callable[[Listed], Listed]


def build(
    listings: Source[Listed], cursor: Page, skip_ahead: Page, discover: Callable[[Listed], list[Out]], log: Sink[Out]
) -> Dataflow:
    """The dataflow over any source of pages and any sink of messages."""
    flow = Dataflow(FLOW)
    pages = op.input("listings", flow, listings)
    followed = op.map("cursor", pages, cursor)
    recorded = op.map("skip_ahead", followed, skip_ahead)
    tasks = op.flat_map("discover", recorded, discover)
    op.output(TOPIC, tasks, log)
    return flow


def flow(settings: Settings, health: Health) -> Dataflow:
    """The dataflow with the relays, the database and the log of the settings."""
    standing, jobs = Standing(), ListingJobs(settings)
    source = listing_source(settings, health, standing, jobs)
    discover = discoverer(RepoQueue(settings), standing, jobs)
    return build(source, follower(standing), skip_recorder(standing), discover, LogSink(settings))


def follower(standing: Standing) -> Page:
    """The `cursor` step: where a listing stands after this page."""

    def follow(page: Listed) -> Listed:
        standing.notes += 1
        if page.state is not None:
            standing.positions[page.upstream] = page.state
            if page.state.done:
                standing.ended.add(page.upstream)
        return page

    return follow


def skip_recorder(standing: Standing) -> Page:
    """The `skip_ahead` step: ranges that were stepped over, filled or narrowed are written before the cursor passes them."""

    def record(page: Listed) -> Listed:
        for upstream, fact in page.facts:
            standing.facts.append((upstream, fact))
            if isinstance(fact, Skip):
                metrics.CURSOR_SKIPS.labels(upstream.partition("#")[0] if page.host is None else "pds").inc()
        return page

    return record


def discoverer(store: RepoQueue, standing: Standing, jobs: ListingJobs) -> Callable[[Listed], list[Out]]:
    """The `discover` step: rows first (committed here), then the messages of those that are new."""

    def discovered(page: Listed, listed: list[ListedRepo]) -> Discovery:
        # a job's work is what was there when it was created: accounts that a later look finds belong to none
        job = None if page.later else jobs.job_of(page.upstream)
        return store.discover(listed, job)

    def discover(page: Listed) -> list[Out]:
        listed = [repo for repo in (as_listed(page, entry) for entry in page.entries) if repo is not None]
        if not listed:
            return []
        found = patiently(lambda: discovered(page, listed))
        tally = standing.tally(page.upstream)
        tally.listed += len(page.entries)
        tally.queued += 0 if page.later else found.new
        tally.duplicates += found.known
        metrics.LISTED.labels("new").inc(found.new)
        metrics.LISTED.labels("known").inc(found.known)
        return [Out(TOPIC, task.did, wire.encode(task)) for task in found.tasks]

    return discover


def as_listed(page: Listed, entry: Entry) -> ListedRepo | None:
    """What a listing may say. A relay knows revs and statuses; a PDS only that an account of its own is there.

    Anyone can run a PDS and list other people's DIDs as gone or as far ahead, so it is believed in neither; nor is what it
    calls active shown again, before the PDS of the DID document has served it (`listed_reopens`).
    """
    if page.host is None:
        return ListedRepo(entry.did, entry.rev, entry.active, entry.status, None)
    return ListedRepo(entry.did, host=page.host) if entry.active else None
