"""The collection filter of a transaction, read under a shared lock; a change of the filter takes it exclusively.

So no transaction commits rows of an outdated filter, and a change sees all rows written before it.
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
    """The filter of the transactions of one connection; logs each change once."""

    def __init__(self) -> None:
        self.filter = EVERYTHING

    def read(self, db: psycopg.Connection[Any]) -> Filter:
        """The filter of this transaction; it cannot change before the transaction ends."""
        with db.cursor() as cursor:
            cursor.execute(b"%b; %b" % (SQL["fence"], SQL["current"]))  # one round trip, two snapshots
            cursor.nextset()
            version, collections, boundary, signal, clean = cursor.fetchone() or (1, ["*"], "all", None, True)
        read = Filter(version, tuple(collections), boundary, signal, clean)
        if read != self.filter:
            fields = {"version": version, "collections": " ".join(collections)[:500], "boundary": boundary}
            logger.info("filter", extra={**fields, "signal": signal or "", "clean": clean})
            self.filter = read
        return self.filter


def admitted(db: psycopg.Connection[Any], kept: Filter, queues: Queues) -> dict[str, Sequence[OffsetEvent]]:
    """The queues of repos within the boundary, including repos that one of these events brings into it."""
    if kept.boundary == "all" or not queues:
        return dict(queues)
    rows = db.execute(SQL["outsiders"], {"dids": list(queues)})
    outsiders = {row[0] for row in rows}
    entering = {did for did in outsiders if kept.lets_in(queued.event for queued in queues[did])}
    if entering:
        db.execute(SQL["let_in"], {"dids": sorted(entering)})
    out = outsiders - entering
    if out:
        metrics.DROPPED.labels("index", OUTSIDE).inc(sum(len(queues[did]) for did in out))
    return {did: queue for did, queue in queues.items() if did not in out}
