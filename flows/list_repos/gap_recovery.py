"""Recovery by listings: gaps of the streams, and skipped ranges.

A gap is resolved by a complete new listing. A skipped range is filled by the listing that skipped it; if that keeps failing,
by the lists of all PDSes. Used by the flow's thread, on its connection.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from connectors.postgres.connection import Database, connect, outside_transaction
from flows.list_repos.crawler import Crawler
from flows.list_repos.listing_loop import FLOW, DueRange
from schemas.settings import Settings
from schemas.sql import queries
from steps.backoff import backoff_seconds
from steps.listing.listing_progress import Fact, RangeFilled, RangeNarrowed
from steps.listing.paginator import Listing, RangeSkipped

SQL = queries("listing")
SKIP_SECONDS = 30.0  # between a skip and the first round of its range
FILL_FIRST_SECONDS = 60.0
FILL_LONGEST_SECONDS = 3600.0
ASK_PDSES_AFTER = 3  # rounds of a relay's range, after which all its PDSes are listed instead

logger = logging.getLogger(FLOW)


class GapRecovery:
    """Gaps and skipped ranges of the relays in the settings, timed by the database's clock."""

    def __init__(self, settings: Settings, database: Database[TupleRow], monotonic: Callable[[], float]) -> None:
        self._relays = settings.relays
        self._database = database
        self._monotonic = monotonic
        self._offset = 0.0  # seconds that the database's clock is ahead of `monotonic`
        self._seen_hosts_of: set[str] = set()  # relays whose list of PDSes this process has read and stored

    def clock(self) -> float:
        """Seconds since 1970 by the database's clock, as of the last `read`."""
        return self._monotonic() + self._offset

    def read(self) -> dict[str, float]:
        """Upstream → when its newest open gap was noticed, by the database's clock. Sets `clock`."""
        rows = outside_transaction(self._database()).execute(SQL["gaps"]).fetchall()
        self._offset = rows[-1][2] - self._monotonic()
        return {upstream: noticed for upstream, noticed, _ in rows if noticed is not None}

    def check(self, crawler: Crawler) -> None:
        """Request what open gaps and due ranges need; store the hosts that were found."""
        gaps = self.read()
        for url in self._relays:
            noticed = max((at for gap, at in gaps.items() if self._resolves(url, gap)), default=0.0)
            relay = crawler.loops.get(url)
            if relay is not None and noticed > relay.state.began and not relay.relist:
                crawler.request_relist(url)
        values = {"upstreams": list(crawler.loops)}
        for row in outside_transaction(self._database()).execute(SQL["due_ranges"], values).fetchall():
            crawler.request_fill(DueRange(*row))
        while crawler.hosts:
            relay_url, hosts = next(iter(crawler.hosts.items()))
            outside_transaction(self._database()).execute(
                SQL["see_hosts"], {"relay": relay_url, "hosts": sorted(set(hosts))}
            )
            self._seen_hosts_of.add(relay_url)
            if crawler.hosts.get(relay_url) is hosts:
                del crawler.hosts[relay_url]
        self._list_pdses(crawler)

    def resolve(self, db: psycopg.Connection[TupleRow], upstream: str, state: Listing) -> None:
        """If a relay was listed to its end, resolve its gaps from before the listing began. In the caller's transaction."""
        if not state.done or state.cut:
            return
        values = {
            "upstream": upstream,
            "began": state.began,
            "others": upstream == self._relays[0],
            "known": self._relays,
        }
        db.execute(SQL["answer_gaps"], values)

    def _list_pdses(self, crawler: Crawler) -> None:
        """Ranges of relays that keep failing count as filled once all PDSes were listed after the skip."""
        db = outside_transaction(self._database())
        values: dict[str, Any] = {"relays": self._relays, "tries": ASK_PDSES_AFTER}
        if db.execute(SQL["stubborn_ranges"], values).fetchone() == (0,):
            return
        crawler.request_all_pdses()
        for url, from_cursor in db.execute(SQL["fill_by_pdses"], {**values, "relays": list(self._seen_hosts_of)}):
            logger.info("skipped range filled by the PDSes", extra={"upstream": url, "from_cursor": from_cursor})

    def _resolves(self, relay: str, gap: str) -> bool:
        """A relay's listing resolves its own gaps; the first relay's also those of upstreams that are not listed."""
        return gap == relay or (relay == self._relays[0] and gap not in self._relays)


def write_fact(db: psycopg.Connection[tuple[Any, ...]], upstream: str, fact: Fact) -> None:
    """Store what happened to a range, in the caller's transaction."""
    if isinstance(fact, RangeSkipped):
        values: dict[str, Any] = {
            "upstream": upstream,
            "from_cursor": fact.from_cursor,
            "to_cursor": fact.to_cursor,
            "reason": fact.reason,
            "delay": SKIP_SECONDS,
        }
        db.execute(SQL["skip"], values)
    elif isinstance(fact, RangeFilled):
        db.execute(SQL["fill"], {"id": fact.id})
    else:
        _narrow(db, fact)


def fill_delay(retry_count: int) -> float:
    """Seconds until the next round of a range; `retry_count`: rounds before this one."""
    return backoff_seconds(retry_count + 1, FILL_FIRST_SECONDS, FILL_LONGEST_SECONDS)


def _narrow(db: psycopg.Connection[tuple[Any, ...]], fact: RangeNarrowed) -> None:
    """The first remaining range keeps the row; the others get rows of their own."""
    values: dict[str, Any] = {"id": fact.id, "delay": fill_delay(fact.retry_count), "reason": fact.reason}
    for from_cursor, to_cursor in fact.left[1:]:
        db.execute(SQL["split"], {**values, "from_cursor": from_cursor, "to_cursor": to_cursor})
    from_cursor, to_cursor = fact.left[0]
    first = {**values, "from_cursor": from_cursor, "to_cursor": to_cursor}
    if db.execute(SQL["narrow"], first).fetchone() is None:
        db.execute(SQL["fill"], {"id": fact.id})  # another row has that range already


def recover_now(settings: Settings, ids: Sequence[int] | None) -> list[int]:
    """Make these open ranges due now (None: all), also at the PDSes. Returns the ids that are due. For `sluice skipped fill`."""
    values = {"ids": None if ids is None else list(ids), "tries": ASK_PDSES_AFTER}
    with connect(settings.database, "sluice skipped") as db:
        return [int(row[0]) for row in db.execute(SQL["fill_now"], values)]
