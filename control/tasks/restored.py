"""After `sluice restore`, control waits until the index has read the log.

The log has attempts whose numbers were assigned after the backup. A repo claimed before the index has read them would get the
same number again. So while the mark of `sluice restore` exists, no repo is claimed (`claim`) and control schedules nothing.
Dead letters written after the backup are indexed again: their group's offset is in the broker, so it is past them.
"""

import json
import logging
from collections.abc import Callable
from typing import Any

import psycopg

from connectors.kafka.log_spans import read
from connectors.kafka.offsets import Offsets
from connectors.postgres.connection import outside_transaction
from control.dead_letter_index import STEP_LETTERS, TOPIC, index_dead_letters
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("restore")
WHY = "restored from a backup: the index reads the log first"

logger = logging.getLogger("control")


class RestoreBarrier:
    """Keeps control from queueing work after a restore, until the index has read the log. For the leader.

    `lifted` is called before the mark is removed, and again if that fails.
    """

    def __init__(self, settings: Settings, offsets: Offsets, lifted: Callable[[], None] = lambda: None) -> None:
        self._settings = settings
        self._offsets = offsets
        self._lifted = lifted

    def pending(self, db: psycopg.Connection[Any]) -> bool:
        """Whether the index has yet to reach the log's ends as of the first call. Raises psycopg.Error and LogUnavailable."""
        row = outside_transaction(db).execute(SQL["restoring"]).fetchone()
        if row is None:
            return False  # not cached: a shard may be restored while control runs
        ends = row[0].get("ends") if row[0].get("cluster") == self._offsets.cluster else None
        lags = [one for one in self._offsets.lags(db) if one.group == "index"]
        if ends is None:
            self._letters(db)
            ends = {f"{one.topic}/{one.partition}": one.end for one in lags}
            detail = {"cluster": self._offsets.cluster, "ends": ends}
            db.execute(SQL["note_ends"], {"detail": json.dumps(detail)})
        if any(one.position < ends.get(f"{one.topic}/{one.partition}", 0) for one in lags):
            return True
        self._lifted()
        db.execute(SQL["restored"])
        logger.info("the index has read the log; work continues")
        return False

    def _letters(self, db: psycopg.Connection[Any]) -> None:
        """Index all dead letters in the log. Those that are in the table keep their state."""
        parts = self._offsets.parts([TOPIC])
        starts, ends = self._offsets.starts(parts), self._offsets.ends(parts)
        spans = {part[1]: (starts[part], ends[part]) for part in parts}
        for messages in read(self._settings, TOPIC, spans, STEP_LETTERS):
            index_dead_letters(db, messages)
