"""The index of the dead-letter topic in `sluice.dead_letter`, kept up to date by the control process: `DeadLetterIndex`."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
import psycopg
from confluent_kafka import Message

from connectors.kafka.consumer import GroupConsumer
from connectors.postgres.connection import outside_transaction
from schemas import wire
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import DEAD_LETTER

SQL = queries("dead_letter")
GROUP = "dead-letters"
TOPIC = DEAD_LETTER
STEP_LETTERS = 1000
FETCH_SECONDS = 5.0


def index_dead_letters(db: psycopg.Connection[Any], messages: Iterable[Message]) -> int:
    """Write a row for each dead letter; a row that exists keeps its state. Returns how many messages are not dead letters."""
    rows: list[tuple[int, int, str, str | None, str, str, str]] = []
    bad = 0
    for message in messages:
        try:
            letter = wire.decode_dead_letter(message.value() or b"")
            datetime.fromisoformat(letter.time)
        except (msgspec.DecodeError, ValueError):
            bad += 1
            continue
        place = (message.partition() or 0, message.offset() or 0)
        rows.append((*place, letter.topic, letter.did, letter.reason, letter.error, letter.time))
    if rows:
        names = ("parts", "offsets", "topics", "dids", "reasons", "errors", "times")
        values = zip(*(tuple(map(storable, row)) for row in rows), strict=True)
        db.execute(SQL["add"], {name: list(column) for name, column in zip(names, values, strict=True)})
    return bad


def storable(value: Any) -> Any:
    """The value without NUL characters, which PostgreSQL's text type cannot hold."""
    return value.replace("\0", "\\0") if isinstance(value, str) else value


class DeadLetterIndex:
    """Consumes the topic. It writes the rows, then commits the offsets: after a crash in between it reads the messages again."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = GroupConsumer(settings, GROUP, [TOPIC], fetch_seconds=FETCH_SECONDS)
        self.close = self._consumer.close

    def step(self, db: psycopg.Connection[Any]) -> int:
        """Index the messages that have arrived, without blocking. Raises LogUnavailable, psycopg.OperationalError."""
        messages = self._consumer.poll(STEP_LETTERS, 0.0)
        if messages:
            index_dead_letters(outside_transaction(db), messages)
            ends: dict[tuple[str, int], int] = {}
            for message in messages:
                ends[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1
            self._consumer.commit(ends)
        return len(messages)
