"""Show, retry and dismiss dead letters.

`retry` processes the payload with the current code, by the letter's origin. If it fails again, the letter stays open with the new
error.

    firehose URL, labels URL                       the frame is decoded, verified and encoded, and sent to its topic
    firehose_backfill, firehose_live, label_live   the message goes through the gate
    repo_backfill, repo_resync                     the task is sent again; the claim prevents double work
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, TIMESTAMP_NOT_AVAILABLE, KafkaError, TopicPartition

from appview.plugin import AppView
from connectors.atproto.stream_sockets import Frame
from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable, cluster_id, watermarks
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.connection import REFUSALS, dict_database
from connectors.postgres.shards import Shards
from control.dead_letter_index import SQL, TOPIC, storable
from control.tasks.scheduler import TASK_TOPICS
from flows.firehose import flow as firehose
from flows.index.apply import apply_events, rules_of
from flows.index.decode import TOPICS, Batch, Decoded, decode
from flows.index.store import IndexStore, index_stores
from flows.labels import flow as labels
from protocol.encoding.unpadded_base64 import from_base64
from protocol.syntax import is_did
from schemas import wire
from schemas.errors import OperatorError
from schemas.reasons import DeadReason
from schemas.settings import Settings

READ_SECONDS = 15.0
PAGE = 200

Place = tuple[int, int]
"""(partition, offset) of a dead letter in its topic."""


@dataclass(frozen=True, slots=True)
class RetryResult:
    """The result of a retry: "retried", or "open" and why."""

    place: Place
    state: str
    why: str = ""


class DeadLetters:
    """Connects on first use; used in one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = LogProducer(settings)
        self._tables: Shards[IndexStore] | None = None
        self._connection = dict_database(settings, "sluice dead letters")

    def show(self, place: Place) -> dict[str, Any]:
        """The row, the help text of its reason, and the letter as in the topic (None: retention removed it). Raises OperatorError."""
        row = self._row(place)
        letter = self._letter(place)
        whole = None if letter is None else msgspec.json.decode(wire.encode(letter))
        return {**row, "help": DeadReason.of(row["reason"]).help, "letter": whole}

    def open_places(self, reason: str | None = None, topic: str | None = None) -> Iterator[Place]:
        """All open letters, or those of a reason or of an origin (its first word: a topic or flow)."""
        after: Place = (-1, -1)
        while True:
            values = {"part": after[0], "offset": after[1], "reason": reason, "topic": topic, "limit": PAGE}
            rows = self._connection().execute(SQL["open_ones"], values).fetchall()
            if not rows:
                return
            for row in rows:
                after = (row["part"], row["log_offset"])
                yield after

    def require_open(self, place: Place) -> None:
        """Raise OperatorError if the letter does not exist or is not open."""
        state = self._row(place)["state"]
        if state != "open":
            raise OperatorError(f"dead letter {place[0]}:{place[1]} is {state} already")

    def due_again(self, ages: Sequence[float], span: float, limit: int) -> list[Place]:
        """Open letters for a missing key that reached one of these ages (seconds) within the last `span` seconds."""
        values = {"ages": list(ages), "oldest": max(ages), "span": span, "limit": limit}
        rows = self._connection().execute(SQL["due_again"], values).fetchall()
        return [(row["part"], row["log_offset"]) for row in rows]

    def retry(self, place: Place) -> RetryResult:
        """Process the payload with the current code. Raises OperatorError if the letter does not exist or is not open."""
        self.require_open(place)
        letter = self._letter(place)
        if letter is None:
            return RetryResult(place, "open", "retention has removed its payload; dismiss it")
        payload = from_base64(letter.payload or "")
        if letter.payload_size > len(payload):
            return RetryResult(
                place, "open", f"cannot be retried: only {len(payload)} of {letter.payload_size} bytes are kept"
            )
        why = self._again(letter, payload)
        values = {"part": place[0], "offset": place[1]}
        if why is not None:
            self._connection().execute(SQL["note"], {**values, "error": storable(why[:2000])})
            return RetryResult(place, "open", why)
        self._connection().execute(SQL["settle"], {**values, "state": "retried"})
        return RetryResult(place, "retried")

    def dismiss(self, place: Place) -> bool:
        """Mark it as dismissed. False if it is not open."""
        values = {"part": place[0], "offset": place[1], "state": "dismissed"}
        return self._connection().execute(SQL["settle"], values).rowcount == 1

    def close(self) -> None:
        self._connection.close()
        for store in self._tables.all() if self._tables is not None else ():
            store.close()

    def _again(self, letter: wire.DeadLetter, payload: bytes) -> str | None:
        """None if it succeeded, else the error."""
        origin, _, upstream = letter.topic.partition(" ")
        if upstream and origin in (firehose.FLOW, labels.FLOW):
            flow = firehose if origin == firehose.FLOW else labels
            return self._send(flow.retry_frame(frame_of(letter), self._settings))
        if origin in TOPICS:
            return self._settle(letter)
        if origin in TASK_TOPICS:
            return self._send_task(origin, payload)
        return f"unknown origin of a dead letter: {letter.topic[:100]!r}"

    def _send(self, out: Sequence[Out]) -> str | None:
        """Send the messages that the steps made of a frame. Dead letters among them are errors: the letter stays open."""
        letters = [wire.decode_dead_letter(one.value) for one in out if one.topic == TOPIC]
        good = [one for one in out if one.topic != TOPIC]
        if good:
            self._producer.send(good)
        if letters:
            return "; ".join(f"{letter.reason}: {letter.error}" for letter in letters[:3])
        return None if good else "the frame contains no event"

    def _settle(self, letter: wire.DeadLetter) -> str | None:
        """Put a message through the gate, under its old offset."""
        message = StoredMessage(letter)
        decoded: Decoded = decode(Batch([message], {}))  # type: ignore[list-item]  # what decode reads of a Message
        if decoded.letters:
            return wire.decode_dead_letter(decoded.letters[0].value).error
        tables = self._tables = self._tables or index_stores(
            self._settings, cluster_id(self._settings), AppView(self._settings)
        )

        def work(store: IndexStore) -> None:
            with store.transaction() as transaction:
                if decoded.queues:
                    apply_events(transaction, decoded.queues, rules_of(self._settings))
                transaction.labels(decoded.labels)

        try:
            tables.call(tables.of_partition(letter.partition or 0), work)
        except REFUSALS as err:
            return " ".join(str(err).split())
        return None

    def _send_task(self, topic: str, payload: bytes) -> str | None:
        try:
            task = wire.decode_task(payload)
        except msgspec.DecodeError as err:
            return str(err)
        if not is_did(task.did):
            return f"not a DID: {task.did[:200]}"
        self._producer.send([Out(topic, task.did, wire.encode(task))])
        return None

    def _row(self, place: Place) -> dict[str, Any]:
        row = self._connection().execute(SQL["find"], {"part": place[0], "offset": place[1]}).fetchone()
        if row is None:
            raise OperatorError(
                f"there is no dead letter {place[0]}:{place[1]}; `sluice dead-letters list --state all`"
            )
        return row

    def _letter(self, place: Place) -> wire.DeadLetter | None:
        """The letter in the topic; None if retention removed it. Raises LogUnavailable if the broker does not answer."""
        low, high = watermarks(self._settings, [TOPIC]).get((self._settings.topic(TOPIC), place[0]), (0, 0))
        if not low <= place[1] < high:
            return None
        consumer = broker.reader(self._settings, "dead-letters-show", auto_offset_reset="error")
        try:
            consumer.assign([TopicPartition(self._settings.topic(TOPIC), *place)])
            message = consumer.poll(READ_SECONDS)
        finally:
            broker.close(consumer)
        error = None if message is None else message.error()
        if error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
            return None  # retention removed it just now
        if message is None or error is not None:
            # not None, or an operator would dismiss a letter that exists
            why = error.str() if error is not None else f"no answer within {READ_SECONDS:.0f} s"
            raise LogUnavailable(f"{self._settings.topic(TOPIC)}/{place[0]}: {why}; is the broker up?")
        return wire.decode_dead_letter(message.value() or b"") if message.offset() == place[1] else None


def frame_of(letter: wire.DeadLetter) -> Frame:
    """The frame of a dead letter, with the time of its receipt: a retry must not make an event newer than it is."""
    upstream = letter.topic.partition(" ")[2]
    return Frame(upstream, from_base64(letter.payload or ""), received=letter.received or 0)


class StoredMessage:
    """The message of a dead letter, as far as `decode` reads a Kafka message."""

    def __init__(self, letter: wire.DeadLetter) -> None:
        self._letter = letter

    def topic(self) -> str:
        """Name without prefix."""
        return self._letter.topic

    def partition(self) -> int:
        return self._letter.partition or 0

    def offset(self) -> int:
        return self._letter.offset or 0

    def timestamp(self) -> tuple[int, int]:
        """Kind, and the original message's time in ms."""
        at = self._letter.received
        return (TIMESTAMP_NOT_AVAILABLE, 0) if at is None else (TIMESTAMP_LOG_APPEND_TIME, at)

    def value(self) -> bytes:
        return from_base64(self._letter.payload or "")
