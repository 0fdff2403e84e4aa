"""The filter as the index uses it: read in each transaction, under a lock that a change of the filter waits for.

So no transaction writes under a filter that was changed before it committed, and whoever looks at the rows after a change
sees all that was written before it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from connectors.runtime import metrics
from schemas.sql import queries
from steps.gate.batch import OffsetEvent
from steps.gate.filters import EVERYTHING, Filter

SQL = queries("filter")
OUTSIDE = "outside"

logger = logging.getLogger("index")

Queues = Mapping[str, Sequence[OffsetEvent]]


class CurrentFilter:
    """The filter of one connection's transactions; a change is logged once."""

    def __init__(self) -> None:
        self.filter = EVERYTHING

    def read(self, db: psycopg.Connection[Any]) -> Filter:
        """The filter of this transaction, fenced until it ends."""
        with db.cursor() as cursor:
            cursor.execute(b"%b; %b" % (SQL["fence"], SQL["current"]))  # one round trip, a snapshot for each
            cursor.nextset()
            version, collections, boundary, signal, clean = cursor.fetchone() or (1, ["*"], "all", None, True)
        read = Filter(version, tuple(collections), boundary, signal, clean)
        if read != self.filter:
            fields = {"version": version, "collections": " ".join(collections)[:500], "boundary": boundary}
            logger.info("filter", extra={**fields, "signal": signal or "", "clean": clean})
            self.filter = read
        return self.filter


def admitted(db: psycopg.Connection[Any], kept: Filter, queues: Queues) -> dict[str, Sequence[OffsetEvent]]:
    """The queues of repos within the boundary. Those that enter it by what they write just now are let in."""
    if kept.boundary == "all" or not queues:
        return dict(queues)
    rows = db.execute(SQL["outsiders"], {"dids": list(queues)})
    outsiders = {row[0] for row in rows}
    entering = {did for did in outsiders if kept.lets_in(placed.event for placed in queues[did])}
    if entering:
        db.execute(SQL["let_in"], {"dids": sorted(entering)})
    out = outsiders - entering
    if out:
        metrics.DROPPED.labels("index", OUTSIDE).inc(sum(len(queues[did]) for did in out))
    return {did: queue for did, queue in queues.items() if did not in out}
