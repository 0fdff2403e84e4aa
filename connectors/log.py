"""The log: a Kafka-compatible broker, written with checked deliveries and read by consumer groups.

Only what Redpanda documents is used. Keys are DIDs and the partitioner is Java's murmur2, so that partition k of every
per-repo topic belongs to the same repos. A produced message counts when its delivery report says so: `LogProducer.send`
returns when all are, or raises.
"""

import hashlib
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from typing_extensions import override

from connectors import broker, metrics
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
DEAD_LETTER_PAYLOAD_BYTES = 256 * 1024
KEEP_ROOM_BYTES = 4096  # batch and record headers of a message at the limit
DELIVERY_SECONDS = 120.0
ANSWER_SECONDS = 10.0  # for the broker to answer a question
SETTLING_SECONDS = 20.0  # for a partition to have a leader, a group its coordinator

Part = tuple[str, int]  # (topic, partition)


class LogUnavailable(Exception):
    """The broker did not answer or did not take a message; the message names the topic and the remedy."""


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


class GroupConsumer:
    """One member of a consumer group over several co-partitioned topics (range assignor: the same k of each).

    `starts(parts)` is asked at every assignment for positions that override the group's (None: the group's own, or the
    log's start). `lost(parts)` is told of partitions that went away.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Iterable[str],
        *,
        starts: Callable[[list[Part]], dict[Part, int]] | None = None,
        lost: Callable[[list[Part]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._group = settings.group(group)
        self._topics = [settings.topic(name) for name in topics]
        self._starts = starts
        self._lost = lost
        self._consumer: Consumer | None = None
        self.assigned: set[Part] = set()

    def _client(self) -> Consumer:
        if self._consumer is None:
            consumer = Consumer(
                broker.options(self._settings)
                | {
                    "group.id": self._group,
                    "partition.assignment.strategy": "range",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "session.timeout.ms": int(self._settings.transport_session_seconds * 1000),
                    "heartbeat.interval.ms": int(self._settings.transport_session_seconds * 1000 / 6),
                    "max.poll.interval.ms": 600_000,
                    "fetch.message.max.bytes": 128 * 1024,  # of a partition, compressed: records shrink tenfold
                    "message.max.bytes": MAX_MESSAGE_BYTES,
                    "receive.message.max.bytes": 100 * 1024 * 1024,
                    "queued.min.messages": 10_000,
                    "queued.max.messages.kbytes": 16 * 1024,
                    "fetch.wait.max.ms": 100,
                    # whoever assigns the group's partitions leaves out topics that a broker has no leader for while it
                    # starts, and looks at them again only after this long (five minutes by default)
                    "topic.metadata.refresh.interval.ms": 10_000,
                    "log_level": 3,
                }
            )
            consumer.subscribe(
                self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )
            self._consumer = consumer
        return self._consumer

    def poll(self, limit: int, wait_seconds: float = 0.05) -> list[Message]:
        """Up to `limit` messages. Raises LogUnavailable on errors that do not pass by themselves."""
        messages = self._client().consume(limit, wait_seconds)
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.fatal() or not (error.retriable() or error.code() in _PASSING):
                raise LogUnavailable(f"{message.topic() or self._group}: {error.str()}")
        return good

    def commit(self, positions: dict[Part, int]) -> None:
        """Move the group's offsets (next to read). Partitions that are no longer ours are left out in silence."""
        ours = [
            TopicPartition(topic, part, at) for (topic, part), at in positions.items() if (topic, part) in self.assigned
        ]
        if not ours or self._consumer is None:
            return
        deadline = time.monotonic() + SETTLING_SECONDS
        while not self._committed(self._consumer, ours, last=time.monotonic() > deadline):
            time.sleep(0.2)

    def _committed(self, consumer: Consumer, positions: list[TopicPartition], *, last: bool) -> bool:
        """False where the group has no coordinator for a moment and this is not the last try."""
        try:
            consumer.commit(offsets=positions, asynchronous=False)
        except KafkaException as err:
            metrics.ACK_FAILURES.inc()
            code = err.args[0].code()
            if code in _NO_COORDINATOR and not last:
                return False
            if code not in _NOT_OURS:
                raise LogUnavailable(f"{self._group}: {err}") from err
        return True

    def seek(self, part: Part, offset: int) -> None:
        """Go on reading at `offset`."""
        self._client().seek(TopicPartition(part[0], part[1], offset))

    def pause(self, parts: Iterable[Part]) -> None:
        """Read nothing from these partitions until `resume`."""
        self._client().pause([TopicPartition(*part) for part in parts])

    def resume(self, parts: Iterable[Part]) -> None:
        """Read these partitions again."""
        self._client().resume([TopicPartition(*part) for part in parts])

    def close(self) -> None:
        """Leave the group."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        parts = [(p.topic, p.partition) for p in partitions]
        starts = self._starts(parts) if self._starts else {}
        for partition in partitions:
            start = starts.get((partition.topic, partition.partition))
            if start is not None:
                partition.offset = start
        self.assigned = set(parts)
        consumer.assign(partitions)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        parts = [(p.topic, p.partition) for p in partitions]
        self.assigned -= set(parts)
        if self._lost:
            self._lost(parts)
        consumer.unassign()


_PASSING = {
    KafkaError._PARTITION_EOF,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
}
_NO_LEADER = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
_NO_COORDINATOR = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError._WAIT_COORD,
}
_NOT_OURS = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._STATE,
    KafkaError._NO_OFFSET,
}


def admin(settings: Settings, refused: broker.Refusals | None = None) -> AdminClient:
    """An admin client for the broker of these settings; `refused` is told its errors."""
    quiet = {"log_level": 0, "socket.timeout.ms": 10_000} | ({"error_cb": refused} if refused else {})
    return AdminClient(broker.options(settings) | quiet)


def cluster_id(settings: Settings, wait_seconds: float = 60.0) -> str:
    """The broker's cluster id, under which offsets are kept. Raises LogUnavailable when nobody answers in time."""
    refused = broker.Refusals()
    client, deadline = admin(settings, refused), time.monotonic() + wait_seconds
    while True:
        try:
            asked = client.describe_cluster(request_timeout=5)
            while not asked.done() and not refused.remedy:
                client.poll(0.05)  # its errors are heard in here
            if refused.remedy:
                raise LogUnavailable(f"{settings.bootstrap}: {refused.remedy}")
            described: Any = asked.result()
            return str(described.cluster_id)
        except KafkaException as err:
            if time.monotonic() > deadline:
                raise LogUnavailable(
                    f"{settings.bootstrap}: {err}; start the broker or correct SLUICE_BOOTSTRAP"
                ) from err
            time.sleep(0.2)


def watermarks(settings: Settings, topics: Iterable[str]) -> dict[Part, tuple[int, int]]:
    """(topic with prefix, partition) → (first offset kept, next to be written), all at once. Raises LogUnavailable."""
    client, deadline = admin(settings), time.monotonic() + SETTLING_SECONDS
    names = [settings.topic(topic) for topic in topics]
    while True:
        try:
            return _marks(client, names)
        except KafkaException as err:
            # a topic that was just made, or whose leader moves, has no leader for a moment
            error: KafkaError = err.args[0]
            if time.monotonic() > deadline or not (error.retriable() or error.code() in _NO_LEADER | _PASSING):
                raise LogUnavailable(f"{settings.bootstrap}: {err}") from err
            time.sleep(0.2)


def _marks(client: AdminClient, names: list[str]) -> dict[Part, tuple[int, int]]:
    known = client.list_topics(timeout=ANSWER_SECONDS).topics
    for name in names:
        error = known[name].error if name in known else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        if error is not None:
            raise LogUnavailable(f"{name}: {error.str()}; run `sluice topics apply`")
    places = [TopicPartition(name, part) for name in names for part in known[name].partitions]
    lows, highs = (
        client.list_offsets(dict.fromkeys(places, spec), request_timeout=ANSWER_SECONDS)
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
    )
    return {(at.topic, at.partition): (lows[at].result().offset, highs[at].result().offset) for at in places}
