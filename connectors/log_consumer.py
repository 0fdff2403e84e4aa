"""Readers of the log: a consumer group shares the partitions of several topics among its members."""

import time
from collections.abc import Callable, Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors import broker, metrics
from connectors.log import MAX_MESSAGE_BYTES, PASSING, SETTLING_SECONDS, LogUnavailable, Part
from schemas.settings import Settings

POLL_BYTES = 64 * 1024 * 1024
CHUNK_MESSAGES = 200
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

    def poll(self, limit: int, wait_seconds: float = 0.05, most_bytes: int = POLL_BYTES) -> list[Message]:
        """Up to `limit` messages, and few more bytes. Raises LogUnavailable on errors that do not pass by themselves."""
        messages = self._consume(limit, wait_seconds, most_bytes)
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.fatal() or not (error.retriable() or error.code() in PASSING):
                raise LogUnavailable(f"{message.topic() or self._group}: {error.str()}")
        return good

    def _consume(self, limit: int, wait_seconds: float, most_bytes: int) -> list[Message]:
        """In chunks, since a call takes as many as it is asked for, of whatever size."""
        taken: list[Message] = []
        size, end = 0, time.monotonic() + wait_seconds
        while len(taken) < limit and size < most_bytes:
            wanted = min(CHUNK_MESSAGES, limit - len(taken))
            some = self._client().consume(wanted, max(0.0, end - time.monotonic()))
            taken += some
            size += sum(len(message.value() or b"") for message in some)
            if len(some) < wanted:
                break
        return taken

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
        consumer.resume(partitions)  # one that was paused when it went away would come back paused, for ever

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        parts = [(p.topic, p.partition) for p in partitions]
        self.assigned -= set(parts)
        if self._lost:
            self._lost(parts)
        consumer.unassign()
