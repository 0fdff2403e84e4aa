"""Removes obsolete rows, so that no table grows without bound.

A dead letter whose message retention has removed can be neither shown nor retried, so its row is removed too; if it was still
open, that is counted and logged as a loss. Resolved losses, recovered ranges, ended audits, unused identities and unused hosts
are removed after `history_days`; rows that still need work stay.

`ObsoleteRows.step()` runs in the leading control process: bounded pieces while there are rows to remove, then every CHECK_SECONDS.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from connectors.postgres.connection import Database, outside_transaction
from connectors.postgres.shards import Shards
from connectors.runtime import metrics
from control.dead_letter_index import TOPIC
from control.tasks.shared_offsets import SharedOffsets
from schemas.sql import queries

SQL = queries("control") | queries("dead_letter") | {"prune_hosts": queries("budget")["prune"]}
CHECK_SECONDS = 600.0
PIECE = 2000
HISTORY = ("prune_gaps", "prune_ranges")
IDENTITIES_PIECE = 20_000
DAY_SECONDS = 86_400.0

logger = logging.getLogger("control")


@dataclass(frozen=True, slots=True)
class Removed:
    """Rows that a step removed. `open_letters` is part of `letters`; `history`: everything but dead letters and hosts."""

    letters: int = 0
    open_letters: int = 0
    hosts: int = 0
    history: int = 0


class ObsoleteRows:
    """`history_days`: how long history is kept. `clock`: monotonic seconds."""

    def __init__(
        self, offsets: SharedOffsets, history_days: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._offsets = offsets
        self._seconds = history_days * DAY_SECONDS
        self._clock = clock
        self._next = 0.0
        self._after = ""  # the DID up to which cached identities were checked

    @property
    def due(self) -> bool:
        """Whether `step` has work."""
        return self._clock() >= self._next

    def step(self, db: psycopg.Connection[Any], shards: Shards[Database[TupleRow]]) -> Removed:
        """Remove one piece if it is due; of a shard that does not answer, the next time. Raises psycopg.Error and LogUnavailable."""
        if not self.due:
            return Removed()
        outside_transaction(db)
        values = {"seconds": self._seconds, "limit": PIECE}
        hosts = db.execute(SQL["prune_hosts"], values).rowcount
        removed = [db.execute(SQL[name], values).rowcount for name in HISTORY]
        removed += shards.answering(lambda shard: shard().execute(SQL["prune_audits"], values).rowcount)
        identities = self._remove_identities(db)
        was_open = self._remove_letters(db)
        if max(len(was_open), hosts, *removed) < PIECE:
            self._next = self._clock() + min(CHECK_SECONDS, self._seconds / 10)
        return Removed(len(was_open), sum(was_open), hosts, sum(removed) + identities)

    def _remove_identities(self, db: psycopg.Connection[Any]) -> int:
        """Check the next piece of the cache. Returns the number of removed rows."""
        values = {"after": self._after, "seconds": self._seconds, "limit": IDENTITIES_PIECE}
        last, removed = db.execute(SQL["prune_identities"], values).fetchone() or (None, 0)
        self._after = last or ""
        return int(removed)

    def _remove_letters(self, db: psycopg.Connection[Any]) -> list[bool]:
        """Remove the rows of dead letters that the topic no longer holds; for each, whether it was open."""
        with self._offsets.use() as offsets:
            starts = offsets.starts(offsets.parts([TOPIC]))
        values = {"parts": [part for _, part in starts], "starts": list(starts.values()), "limit": PIECE}
        was_open = [row[0] for row in db.execute(SQL["prune"], values).fetchall()]
        opened = sum(was_open)
        metrics.LETTERS_EXPIRED.labels("open").inc(opened)
        metrics.LETTERS_EXPIRED.labels("settled").inc(len(was_open) - opened)
        if opened:
            logger.warning("retention removed open dead letters", extra={"letters": opened})
        return was_open
