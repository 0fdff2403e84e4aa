"""The time up to which everything that the relays delivered is indexed.

A listing may name a rev that the stream delivers later. A missing rev counts as lost only when everything up to some time after
the listing is indexed. Two parts may be behind: the index (its oldest unread live message), and the firehose (the time of its last
event; a relay without new events is up to date).
"""

import time
from typing import Any

import psycopg

from connectors.kafka.offsets import Offsets, PartitionLag
from connectors.postgres.connection import tuple_database
from connectors.postgres.repo_queue import FOREVER
from control.tasks.lag_age import oldest_unsettled
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import FIREHOSE_LIVE

SQL = queries("control")
TOPIC = FIREHOSE_LIVE
FRESH_SECONDS = 5.0  # how long an answer is cached


class Settled:
    """Connects on first use."""

    def __init__(self, settings: Settings, offsets: Offsets) -> None:
        self._settings = settings
        self._offsets = offsets
        self._database = tuple_database(settings, "sluice settled")
        self.close = self._database.close
        self._found, self._until = 0.0, 0.0

    def until(self) -> float:
        """Unix time up to which everything is indexed; 0: unknown. Raises psycopg.Error and LogUnavailable."""
        if time.monotonic() >= self._until:
            db = self._database()
            self._found = min(self._indexed(db), self._read(db))
            self._until = time.monotonic() + FRESH_SECONDS
        return self._found

    def _indexed(self, db: psycopg.Connection[Any]) -> float:
        """Time of the oldest live message that the index has not read; the present if there is none."""
        parts = self._offsets.parts([TOPIC])
        before = time.time()
        stored = self._offsets.stored(db, "index")
        starts, ends = self._offsets.starts(parts), self._offsets.ends(parts)
        lags = [
            PartitionLag("index", *part, starts[part], stored.get(part, starts[part]), ends[part]) for part in parts
        ]
        age = oldest_unsettled(self._settings, lags).get(("index", TOPIC))
        return 0.0 if age is None else before - age

    def _read(self, db: psycopg.Connection[Any]) -> float:
        """The time up to which the most advanced relay has been read; no limit if no firehose has ever run."""
        row = db.execute(SQL["stream_time"], {"relays": self._settings.relays}).fetchone()
        return FOREVER if row is None or row[0] is None else float(row[0])
