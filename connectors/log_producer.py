"""Messages of the log, and their writer.

Keys are DIDs and the partitioner is Java's murmur2, so that partition k of every per-repo topic belongs to the same repos.
A produced message counts when its delivery report says so: `LogProducer.send` returns when all are, or raises.
"""

import hashlib
from base64 import b64encode
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import msgspec
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from typing_extensions import override

from connectors import broker, metrics
from connectors.log import MAX_MESSAGE_BYTES, LogUnavailable
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings

DEAD_LETTER_PAYLOAD_BYTES = 256 * 1024
DELIVERY_SECONDS = 120.0


class Out(msgspec.Struct, frozen=True, gc=False):  # thousands a batch: a frozen dataclass costs five times as much
    """A message to write: topic without prefix, DID key, JSON value."""

    topic: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where a message stands in the log."""

    partition: int
    offset: int


def partition_of(did: str, partitions: int) -> int:
    """Partition of a key under Java's default partitioner (murmur2, seed 0x9747b28c, sign bit cleared)."""
    return (_murmur2(did.encode()) & 0x7FFFFFFF) % partitions


def _murmur2(data: bytes) -> int:
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def now_text() -> str:
    """The present as the messages write it: `YYYY-MM-DDTHH:MM:SS.mmmZ`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def dead_letter(
    topic: str,
    reason: DeadReason,
    error: str,
    payload: bytes,
    *,
    did: str | None = None,
    at: tuple[int, int] | None = None,
) -> Out:
    """A dead letter: the payload up to 256 KiB, and its hash and size. `at` is (partition, offset) of its origin."""
    letter = wire.DeadLetter(
        topic=topic,
        reason=reason.value,
        error=error[:2000],
        time=now_text(),
        did=did,
        partition=at[0] if at else None,
        offset=at[1] if at else None,
        payload=b64encode(payload[:DEAD_LETTER_PAYLOAD_BYTES]).decode().rstrip("="),
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        payload_size=len(payload),
    )
    return Out("dead_letter", did or topic, wire.encode(letter))


class LogProducer:
    """An idempotent producer whose every delivery is checked. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None

    def _client(self) -> Producer:
        if self._producer is None:
            self._producer = Producer(
                broker.options(self._settings)
                | {
                    "acks": "all",
                    "enable.idempotence": True,
                    "partitioner": "murmur2_random",
                    "compression.type": "zstd",
                    "linger.ms": 5,
                    "batch.size": 1024 * 1024,
                    "message.max.bytes": MAX_MESSAGE_BYTES,
                    "queue.buffering.max.messages": 200_000,
                    "queue.buffering.max.kbytes": 64 * 1024,
                    "message.timeout.ms": int(DELIVERY_SECONDS * 1000),
                    "log_level": 3,
                }
            )
        return self._producer

    def send(self, messages: Sequence[Out], places_of: Collection[int] = ()) -> dict[int, Delivered]:
        """Write all messages, in order; where those of the indexes `places_of` stand.

        Raises LogUnavailable unless every one was acknowledged. A report of its own costs a message more than writing it,
        so only those whose place is asked for have one.
        """
        produce, reports = self._client().produce, _Reports()
        topics = {name: self._settings.topic(name) for name in {message.topic for message in messages}}
        for index, message in enumerate(messages):
            report = partial(reports.place, index) if index in places_of else reports.one
            while True:
                try:
                    produce(topics[message.topic], message.value, message.key, on_delivery=report)
                    break
                except BufferError:
                    self._client().poll(0.05)
                except KafkaException as err:
                    raise LogUnavailable(f"{topics[message.topic]}: {err}") from err
        if self._client().flush(DELIVERY_SECONDS) or reports.failed is not None or reports.delivered != len(messages):
            why = reports.failed.str() if reports.failed else "no acknowledgement in time"
            raise LogUnavailable(f"{self._settings.bootstrap}: {why}; is the broker up and are the topics applied?")
        for topic, count in Counter(message.topic for message in messages).items():
            metrics.PRODUCED.labels(topic).inc(count)
        return reports.places


class _Reports:
    """Delivery reports of one `send`."""

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
    """Output of a flow to the log: a batch is durable when the engine goes on."""

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
