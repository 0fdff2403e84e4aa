"""What control does first with a restored database: nothing, until the index has read the log.

Attempts in the log were numbered after the backup; repos that are claimed before the index has read them would be numbered
alike. So no repo is claimed while the mark of `sluice restore` stands (`claim`), and control schedules nothing. Dead letters
that came after the backup are indexed again: the group's position in their topic is the broker's.
"""

import json
import logging
import time
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable
from connectors.kafka.offsets import Positions
from connectors.postgres.connection import alone
from connectors.runtime import watchdog
from control.dead_letters import STEP_LETTERS, TOPIC, index_letters
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("restore")
LETTERS_SECONDS = 60.0
WHY = "restored from a backup: the index reads the log first"

logger = logging.getLogger("control")


class Restored:
    """Used by whoever leads."""

    def __init__(self, settings: Settings, positions: Positions) -> None:
        self._settings = settings
        self._positions = positions
        self._done = False

    def waits(self, db: psycopg.Connection[Any]) -> bool:
        """Whether the index has still to read what the log held. Raises psycopg.Error and LogUnavailable."""
        if self._done:
            return False
        row = alone(db).execute(SQL["restoring"]).fetchone()
        if row is None:
            self._done = True
            return False
        ends = row[0].get("ends") if row[0].get("cluster") == self._positions.cluster else None
        standings = [one for one in self._positions.standings(db) if one.group == "index"]
        if ends is None:
            self._letters(db)
            ends = {f"{one.topic}/{one.partition}": one.end for one in standings}
            detail = {"cluster": self._positions.cluster, "ends": ends}
            db.execute(SQL["note_ends"], {"detail": json.dumps(detail)})
        if any(one.position < ends.get(f"{one.topic}/{one.partition}", 0) for one in standings):
            return True
        db.execute(SQL["restored"])
        logger.info("the index has read the log; work begins again")
        self._done = True
        return False

    def _letters(self, db: psycopg.Connection[Any]) -> None:
        """Index all dead letters that the log has; those that are known keep their state."""
        parts = self._positions.parts([TOPIC])
        starts, ends = self._positions.starts(parts), self._positions.ends(parts)
        left = {part: ends[part] for part in parts if starts[part] < ends[part]}
        own = {"group.id": self._settings.group("restored"), "enable.auto.commit": False, "log_level": 0}
        consumer = Consumer(broker.options(self._settings, "restored") | own)
        deadline = time.monotonic() + LETTERS_SECONDS
        try:
            name = self._settings.topic(TOPIC)
            consumer.assign([TopicPartition(name, part[1], starts[part]) for part in left])
            while left:
                watchdog.mark()
                messages = [one for one in consumer.consume(STEP_LETTERS, 1.0) if one.error() is None]
                index_letters(db, messages)
                for message in messages:
                    part = (TOPIC, message.partition() or 0)
                    if (message.offset() or 0) + 1 >= left.get(part, 0):
                        left.pop(part, None)
                if messages:
                    deadline = time.monotonic() + LETTERS_SECONDS
                elif time.monotonic() > deadline:
                    raise LogUnavailable(f"{name}: no answer within {LETTERS_SECONDS:.0f} s; is the broker up?")
        finally:
            broker.close(consumer)
