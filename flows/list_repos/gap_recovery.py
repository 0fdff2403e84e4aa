"""What listings go back to: gaps of the streams, answered by listing anew, and skipped ranges, filled where they are or by PDSes.

Used by the flow's thread, on its connection.
"""

import logging
import time
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from connectors.postgres.connection import Database, alone
from flows.list_repos.crawler import FLOW, Listings, Range
from schemas.settings import Settings
from schemas.sql import queries
from steps.backoff import backoff_seconds
from steps.listing.paginator import Listing, Skip
from steps.listing.progress import Filled, Narrowed

SQL = queries("listing")
SKIP_SECONDS = 30.0  # from a skip to the first round of its range
FILL_FIRST_SECONDS = 60.0
FILL_LONGEST_SECONDS = 3600.0
ASK_PDSES_AFTER = 3  # tries of a relay's range before all its PDSes are listed in its place

logger = logging.getLogger(FLOW)


class Losses:
    """Gaps and skipped ranges of the relays of the settings, and the database's clock that they are reckoned by."""

    def __init__(self, settings: Settings, database: Database[TupleRow]) -> None:
        self._relays = settings.relays
        self._database = database
        self._offset = 0.0  # the database's clock less ours
        self._seen_hosts_of: set[str] = set()  # relays whose PDSes this process has asked for and written down

    def clock(self) -> float:
        """Seconds since 1970, as the database had it at the last look."""
        return time.time() + self._offset

    def gaps(self) -> dict[str, float]:
        """Upstream → when its newest unanswered loss was noticed, by the database's clock, which is ours from here on."""
        rows = alone(self._database()).execute(SQL["gaps"]).fetchall()
        self._offset = rows[-1][2] - time.time()
        return {upstream: noticed for upstream, noticed, _ in rows if noticed is not None}

    def look(self, listings: Listings) -> None:
        """Losses to answer, skipped ranges to go back to, hosts to write down."""
        gaps = self.gaps()
        upstreams = listings.upstreams
        for url in self._relays:
            noticed = max((at for gap, at in gaps.items() if self._answers(url, gap)), default=0.0)
            relay = upstreams.get(url)
            if relay is not None and noticed > relay.state.began and not relay.relist:
                listings.ask_relist(url)
        values = {"upstreams": list(upstreams)}
        for row in alone(self._database()).execute(SQL["due_ranges"], values).fetchall():
            listings.ask_fill(Range(*row))
        while listings.hosts:
            relay_url, hosts = next(iter(listings.hosts.items()))
            alone(self._database()).execute(SQL["see_hosts"], {"relay": relay_url, "hosts": sorted(set(hosts))})
            self._seen_hosts_of.add(relay_url)
            if listings.hosts.get(relay_url) is hosts:
                del listings.hosts[relay_url]
        self._ask_pdses(listings)

    def answer(self, db: psycopg.Connection[TupleRow], upstream: str, state: Listing) -> None:
        """A relay was listed to its end: its losses from before the listing began are answered. In the caller's transaction."""
        values = {
            "upstream": upstream,
            "began": state.began,
            "others": upstream == self._relays[0],
            "known": self._relays,
        }
        db.execute(SQL["answer_gaps"], values)

    def _ask_pdses(self, listings: Listings) -> None:
        """Ranges of relays that stay closed: what all PDSes have listed since they were stepped over is what they held."""
        db = alone(self._database())
        values: dict[str, Any] = {"relays": self._relays, "tries": ASK_PDSES_AFTER}
        if db.execute(SQL["stubborn_ranges"], values).fetchone() == (0,):
            return
        listings.ask_all_pdses()
        for url, from_cursor in db.execute(SQL["fill_by_pdses"], {**values, "relays": list(self._seen_hosts_of)}):
            logger.info("skipped range filled by the PDSes", extra={"upstream": url, "from_cursor": from_cursor})

    def _answers(self, relay: str, gap: str) -> bool:
        """A relay's listing answers its own losses; the first relay's also those of nobody that we list."""
        return gap == relay or (relay == self._relays[0] and gap not in self._relays)


def write_fact(db: psycopg.Connection[tuple[Any, ...]], upstream: str, fact: Skip | Filled | Narrowed) -> None:
    """What became of a range, in the caller's transaction."""
    if isinstance(fact, Skip):
        values: dict[str, Any] = {
            "upstream": upstream,
            "from_cursor": fact.from_cursor,
            "to_cursor": fact.to_cursor,
            "reason": fact.reason,
            "delay": SKIP_SECONDS,
        }
        db.execute(SQL["skip"], values)
    elif isinstance(fact, Filled):
        db.execute(SQL["fill"], {"id": fact.id})
    else:
        _narrow(db, fact)


def fill_delay(retry_count: int) -> float:
    """Seconds from one round of a range to the next, whatever its requests came to; `retry_count`: rounds before."""
    return backoff_seconds(retry_count + 1, FILL_FIRST_SECONDS, FILL_LONGEST_SECONDS)


def _narrow(db: psycopg.Connection[tuple[Any, ...]], fact: Narrowed) -> None:
    """The first range that is left keeps the row, the others get rows of their own."""
    values: dict[str, Any] = {"id": fact.id, "delay": fill_delay(fact.retry_count), "reason": fact.reason}
    for from_cursor, to_cursor in fact.left[1:]:
        db.execute(SQL["split"], {**values, "from_cursor": from_cursor, "to_cursor": to_cursor})
    from_cursor, to_cursor = fact.left[0]
    first = {**values, "from_cursor": from_cursor, "to_cursor": to_cursor}
    if db.execute(SQL["narrow"], first).fetchone() is None:
        db.execute(SQL["fill"], {"id": fact.id})  # another row is that range already
