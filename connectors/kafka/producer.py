"""Messages of the log, and their producer.

Keys are DIDs and the partitioner is Java's murmur2, so partition k of every per-repo topic has the same repos.
`LogProducer.send` returns when all messages are acknowledged, or raises.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import msgspec
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from typing_extensions import override

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable
from connectors.runtime import metrics, watchdog
from connectors.runtime.stop import STOP, Stopping
from protocol.encoding.unpadded_base64 import to_base64
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings
from schemas.topics import DEAD_LETTER, MAX_MESSAGE_BYTES

DEAD_LETTER_PAYLOAD_BYTES = 256 * 1024
DELIVERY_SECONDS = 120.0
FLUSH_SECONDS = 1.0
LARGE_BYTES = 64 * 1024
"""Larger messages use snappy, whose compression ratio is at most about 20. Fetches are bounded in compressed bytes: with zstd,
60 messages of 12 MB of one repeated character would be a single fetch of 700 MB."""
STOPPING_SECONDS = 8.0  # for the last messages of a stopping process


class Out(msgspec.Struct, frozen=True, gc=False):  # thousands per batch: a frozen dataclass takes five times as long
    """A message to write: topic without prefix, DID key, JSON value, and timestamp in Unix ms (0: time of writing)."""

    topic: str
    key: str
    value: bytes
    time: int = 0


@dataclass(frozen=True, slots=True)
class Delivered:
    """Partition and offset of a written message."""

    partition: int
    offset: int


def now_text() -> str:
    """The current time in UTC as `YYYY-MM-DDTHH:MM:SS.mmmZ`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def dead_letter(
    topic: str,
    reason: DeadReason,
    error: str,
    payload: bytes,
    *,
    did: str | None = None,
    at: tuple[int, int] | None = None,
    received: int | None = None,
) -> Out:
    """A dead letter with up to 256 KiB of the payload, its hash and size.

    `at`: (partition, offset) of the original message; `received`: when we received it, Unix time in ms.
    """
    letter = wire.DeadLetter(
        topic=topic,
        reason=reason.value,
        error=error[:2000],
        time=now_text(),
        did=did,
        partition=at[0] if at else None,
        offset=at[1] if at else None,
        payload=to_base64(payload[:DEAD_LETTER_PAYLOAD_BYTES]),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        payload_size=len(payload),
        received=received,
    )
    return Out(DEAD_LETTER, did or topic, wire.encode(letter))


class LogProducer:
    """An idempotent producer that checks every delivery. Connects on first use, and again after a failure."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producers: dict[str, Producer] = {}

    def _client(self, compression: str = "zstd") -> Producer:
        if compression not in self._producers:
            self._producers[compression] = Producer(
                broker.options(self._settings, "producer")
                | {
                    "acks": "all",
                    "enable.idempotence": True,
                    "partitioner": "murmur2_random",
                    "compression.type": compression,
                    "linger.ms": 5,
                    "batch.size": 1024 * 1024,
                    "message.max.bytes": MAX_MESSAGE_BYTES,
                    "queue.buffering.max.messages": 200_000,
                    "queue.buffering.max.kbytes": 64 * 1024,
                    "message.timeout.ms": int(DELIVERY_SECONDS * 1000),
                    "log_level": 3,
                },
                logger=broker.LOG,
            )
        return self._producers[compression]

    def send(self, messages: Sequence[Out], places_of: Collection[int] = ()) -> dict[int, Delivered]:
        """Write all messages. Returns index → Delivered for the indexes in `places_of`.

        Raises LogUnavailable unless all are acknowledged within DELIVERY_SECONDS, and Stopping if the process stops and the
        log does not accept them. A callback that records the offset costs more than the write, so only `places_of` have one.
        Messages of one key stay in order: if one of them is large, all of them use the same (snappy) producer.
        """
        reports, limit = _Reports(), _SendLimit()
        try:
            self._produce(messages, reports, places_of, limit)
            left = self._flush(limit)
        except (LogUnavailable, Stopping):
            self._discard()
            raise
        if left or reports.failed is not None or reports.delivered != len(messages):
            self._discard()
            why = reports.failed.str() if reports.failed else "no acknowledgement in time"
            raise LogUnavailable(
                f"{self._settings.kafka_bootstrap}: {why}; is the broker up and are the topics applied?"
            )
        for topic, count in Counter(message.topic for message in messages).items():
            metrics.PRODUCED.labels(topic).inc(count)
        return reports.places

    def _produce(
        self, messages: Sequence[Out], reports: "_Reports", places_of: Collection[int], limit: "_SendLimit"
    ) -> None:
        large_keys = {message.key for message in messages if len(message.value) > LARGE_BYTES}
        small, topics = self._client(), {one: self._settings.topic(one) for one in {m.topic for m in messages}}
        for index, message in enumerate(messages):
            report = partial(reports.place, index) if index in places_of else reports.one
            client = small if message.key not in large_keys else self._client("snappy")
            while True:
                try:
                    client.produce(
                        topics[message.topic], message.value, message.key, on_delivery=report, timestamp=message.time
                    )
                    break
                except BufferError as err:
                    if limit.reached():
                        raise LogUnavailable(f"{topics[message.topic]}: the queue to the broker stays full") from err
                    client.poll(0.05)
                except KafkaException as err:
                    raise LogUnavailable(f"{topics[message.topic]}: {err}") from err

    def _flush(self, limit: "_SendLimit") -> int:
        """Wait for all delivery reports, marking progress for the watchdog. Returns the number of missing reports."""
        for client in self._producers.values():
            while left := client.flush(FLUSH_SECONDS):
                if limit.reached():
                    return left
        return 0

    def _discard(self) -> None:
        """Drop the clients and their queues after a failure: a client with a fatal error is unusable."""
        for client in self._producers.values():
            client.purge()
            client.poll(0)
        self._producers.clear()


class _SendLimit:
    """The time limit of one `send`."""

    def __init__(self) -> None:
        self._until = time.monotonic() + DELIVERY_SECONDS + FLUSH_SECONDS
        self._stopping: float | None = None

    def reached(self) -> bool:
        """Whether the limit is reached. Marks progress. Raises Stopping STOPPING_SECONDS after STOP was first seen set."""
        watchdog.mark()
        now = time.monotonic()
        if STOP.is_set():
            self._stopping = self._stopping or now
            if now - self._stopping > STOPPING_SECONDS:
                raise Stopping("the log did not take the last messages")
        return now > self._until


class _Reports:
    def __init__(self) -> None:
        self.delivered = 0
        self.failed: KafkaError | None = None
        self.places: dict[int, Delivered] = {}

    def one(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self.delivered += 1
        else:
            self.failed = error

    def place(self, index: int, error: KafkaError | None, message: Message) -> None:
        self.one(error, message)
        if error is None:
            self.places[index] = Delivered(message.partition() or 0, message.offset() or 0)


class LogSink(DynamicSink[Out]):
    """Output of a flow to the log. `write_batch` returns when the batch is durable."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @override
    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_LogSinkPartition":
        return _LogSinkPartition(LogProducer(self._settings))


class _LogSinkPartition(StatelessSinkPartition[Out]):
    def __init__(self, producer: LogProducer) -> None:
        self._producer = producer

    @override
    def write_batch(self, items: list[Out]) -> None:
        self._producer.send(items)
