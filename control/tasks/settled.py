"""How far the streams are settled: up to which moment all that the relays have brought is in the tables.

A listing names revs that the stream may bring yet. Only where everything up to some time after the listing is indexed, a rev that
is missing is lost. Two things may be behind: the index (its oldest unread live message), and the firehose (the time of its last
event; a relay that is quiet has come to now).
"""

import time
from typing import Any

import psycopg

from connectors.kafka.offsets import Positions, Standing
from connectors.postgres.connection import tuples
from connectors.postgres.repo_queue import FOREVER
from control.tasks.lag_age import oldest_unsettled
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import FIREHOSE_LIVE

SQL = queries("control")
TOPIC = FIREHOSE_LIVE
FRESH_SECONDS = 5.0  # the answer is kept so long


class Settled:
    """See the module. Connects on first use."""

    def __init__(self, settings: Settings, positions: Positions) -> None:
        self._settings = settings
        self._positions = positions
        self._database = tuples(settings, "sluice settled")
        self.close = self._database.close
        self._found, self._until = 0.0, 0.0

    def until(self) -> float:
        """Unix time up to which the streams are settled; 0: unknown. Raises psycopg.Error and LogUnavailable."""
        if time.monotonic() >= self._until:
            db = self._database()
            self._found = min(self._indexed(db), self._read(db))
            self._until = time.monotonic() + FRESH_SECONDS
        return self._found

    def _indexed(self, db: psycopg.Connection[Any]) -> float:
        """When the oldest live message was written that the index has not read; none: all up to now is settled."""
        parts = self._positions.parts([TOPIC])
        before = time.time()
        stored = self._positions.stored(db, "index")
        starts, ends = self._positions.starts(parts), self._positions.ends(parts)
        standings = [
            Standing("index", *part, starts[part], stored.get(part, starts[part]), ends[part]) for part in parts
        ]
        age = oldest_unsettled(self._settings, standings).get(("index", TOPIC))
        return 0.0 if age is None else before - age

    def _read(self, db: psycopg.Connection[Any]) -> float:
        """The time up to which the farthest relay has been read; no firehose has ever run here: no limit."""
        row = db.execute(SQL["stream_time"], {"relays": self._settings.relays}).fetchone()
        return FOREVER if row is None or row[0] is None else float(row[0])
