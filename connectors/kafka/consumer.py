"""Readers of the log: a consumer group shares the partitions of several topics among its members."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable, Part
from connectors.runtime import metrics, watchdog
from schemas.settings import Settings
from schemas.topics import MAX_MESSAGE_BYTES

POLL_BYTES = 64 * 1024 * 1024
CHUNK_MESSAGES = 200
COMMIT_SECONDS = 10.0
"""After so long without an answer a commit counts as lost, and the next one carries its positions as well."""
AGAIN_SECONDS = 0.5
SETTLE_SECONDS = 5.0
"""How long `close` waits for the last commit."""
UNKNOWN_SECONDS = 45.0
"""A topic that is unknown for so long does not exist; librdkafka asks for it every ten seconds."""
FAILING_SECONDS = 60.0
"""A group that commits nothing for so long is named in the log, once in this time."""
_NOT_OURS = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._STATE,
    KafkaError._NO_OFFSET,
}

log = logging.getLogger("log_consumer")


class GroupConsumer:
    """One member of a consumer group over several co-partitioned topics (range assignor: the same k of each).

    `starts(parts)` is called at every assignment for positions that override the group's (None: the group's own, or the
    log's start). `lost(parts)` is called with partitions that went away.

    Commits are asynchronous: librdkafka's synchronous commit waits without a limit for a coordinator that has lost it. One
    commit at a time is on its way; positions that come meanwhile, or whose commit failed or had no answer, go with the next.
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
        self._use = f"group-{group}"
        self._group = settings.group(group)
        self._topics = [settings.topic(name) for name in topics]
        self._starts = starts
        self._lost = lost
        self._consumer: Consumer | None = None
        self._commits = _Commits(self._group)
        self._unknown = float("-inf"), float("-inf")  # when a topic was unknown: first, and last
        self.assigned: set[Part] = set()

    def _client(self) -> Consumer:
        if self._consumer is None:
            consumer = Consumer(
                broker.options(self._settings, self._use)
                | {
                    "group.id": self._group,
                    "partition.assignment.strategy": "range",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "on_commit": self._commits.answered,
                    "session.timeout.ms": int(self._settings.tuning.transport_session_seconds * 1000),
                    "heartbeat.interval.ms": int(self._settings.tuning.transport_session_seconds * 1000 / 6),
                    "max.poll.interval.ms": 600_000,
                    "fetch.message.max.bytes": 128 * 1024,  # of a partition, compressed: records shrink tenfold
                    "message.max.bytes": MAX_MESSAGE_BYTES,
                    "receive.message.max.bytes": 100 * 1024 * 1024,
                    "queued.min.messages": 10_000,
                    "queued.max.messages.kbytes": 16 * 1024,
                    "fetch.wait.max.ms": 100,
                    # the member that assigns the group's partitions leaves out topics that a broker has no leader for while
                    # it starts, and checks them again only after this long (five minutes by default)
                    "topic.metadata.refresh.interval.ms": 10_000,
                    "log_level": 3,
                },
                logger=broker.LOG,
            )
            consumer.subscribe(
                self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
            )
            self._consumer = consumer
        return self._consumer

    def poll(self, limit: int, wait_seconds: float = 0.05, most_bytes: int = POLL_BYTES) -> list[Message]:
        """Up to `limit` messages, and few more bytes. Raises LogUnavailable on errors that do not pass by themselves."""
        try:
            messages = self._consume(limit, wait_seconds, most_bytes)
        except KafkaException as err:
            raise self._gone(err.args[0], self._group) from err
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            elif not (self._passes(error) or error.code() in _NOT_OURS):
                raise self._gone(error, message.topic() or self._group)
        self._commits.check()
        self._send()  # what failed or had no answer, also where nothing new is to be committed
        return good

    def _consume(self, limit: int, wait_seconds: float, most_bytes: int) -> list[Message]:
        """In chunks, since a call takes as many as it is asked for, of whatever size."""
        taken: list[Message] = []
        size, end = 0, time.monotonic() + wait_seconds
        while len(taken) < limit and size < most_bytes:
            wanted = min(CHUNK_MESSAGES, limit - len(taken))
            some = self._client().consume(wanted, max(0.0, end - time.monotonic()))
            watchdog.mark()
            taken += some
            size += sum(len(message.value() or b"") for message in some)
            if len(some) < wanted:
                break
        return taken

    def _passes(self, error: KafkaError) -> bool:
        """Also a topic that is unknown for a short time: a broker that starts has not read all of them."""
        if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            return broker.transient(error)
        now = time.monotonic()
        if now - self._unknown[1] > UNKNOWN_SECONDS:
            self._unknown = now, now
        self._unknown = self._unknown[0], now
        return now - self._unknown[0] < UNKNOWN_SECONDS

    def _gone(self, error: KafkaError, what: str) -> LogUnavailable:
        """A client with a fatal error never works again: the next call makes a new one."""
        if error.fatal() and self._consumer is not None:
            broker.close(self._consumer)
            self._consumer = None
            self.assigned.clear()
        return LogUnavailable(f"{what}: {error.str()}")

    def commit(self, positions: dict[Part, int]) -> None:
        """Move the group's offsets (next to read), soon; never waits. Partitions that are no longer ours are left out.

        Raises LogUnavailable where an earlier commit was refused for a reason that does not pass by itself.
        """
        self._commits.check()
        self._commits.add(positions)
        self._send()

    def _send(self) -> bool:
        return self._consumer is not None and self._commits.send(self._consumer, self.assigned)

    def settle(self, seconds: float) -> bool:
        """Wait at most so long until every position is committed; for the thread that polls, when nothing more is read.

        False where the broker has not confirmed all of them.
        """
        deadline = time.monotonic() + seconds
        while self._send():
            if time.monotonic() > deadline or self._consumer is None:
                return False
            watchdog.mark()
            self._consumer.poll(0.05)  # serves the answers; nothing is read any more, so a message in here is not lost
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
        """Settle what is committed and leave the group, each within a few seconds."""
        if self._consumer is not None:
            with suppress(KafkaException):  # nothing more is read, only answers
                self._consumer.pause(self._consumer.assignment())
            if not self.settle(SETTLE_SECONDS):
                log.warning("the last positions are not confirmed by the broker", extra={"group": self._group})
            broker.close(self._consumer)
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


class _Commits:
    """Positions on their way to the coordinator. Used by the thread that commits and the one that polls."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._lock = threading.Lock()
        self._wanted: dict[Part, int] = {}
        self._sent: dict[Part, int] = {}
        self._sent_at: float | None = None
        self._again_at = 0.0
        self._confirmed_at = time.monotonic()
        self._warned_at = float("-inf")
        self._refused: KafkaError | None = None

    def add(self, positions: dict[Part, int]) -> None:
        """These are to be committed."""
        with self._lock:
            if not self._wanted and self._sent_at is None:
                self._confirmed_at = time.monotonic()
            self._wanted |= positions

    def check(self) -> None:
        """Raise LogUnavailable, once, for a refusal that does not pass by itself; warn where nothing is confirmed."""
        with self._lock:
            refused, self._refused = self._refused, None
            now = time.monotonic()
            open_ = bool(self._wanted) or self._sent_at is not None
            silent = open_ and now - max(self._confirmed_at, self._warned_at) > FAILING_SECONDS
            if silent:
                self._warned_at = now
        if refused is not None:
            raise LogUnavailable(f"{self._group}: {refused.str()}")
        if silent:
            log.warning("the broker confirms no offsets", extra={"group": self._group, "seconds": FAILING_SECONDS})

    def send(self, consumer: Consumer, assigned: set[Part]) -> bool:
        """Send what is wanted, unless a commit is on its way; False where nothing is left to send or to confirm."""
        with self._lock:
            now = time.monotonic()
            if self._sent_at is not None and now - self._sent_at > COMMIT_SECONDS:
                self._failed("no answer")
            self._wanted = {part: at for part, at in self._wanted.items() if part in assigned}
            if self._sent_at is not None or (self._wanted and now < self._again_at):
                return True
            if not self._wanted:
                return False
            self._sent, self._wanted, self._sent_at = self._wanted, {}, now
            positions = [TopicPartition(topic, part, at) for (topic, part), at in self._sent.items()]
        try:
            consumer.commit(offsets=positions, asynchronous=True)
        except KafkaException as err:
            self.answered(err.args[0], positions)
        return True

    def answered(self, error: KafkaError | None, positions: list[TopicPartition]) -> None:
        """The broker's answer, called within a poll."""
        with self._lock:
            if {(one.topic, one.partition): one.offset for one in positions} != self._sent:
                return  # of a commit that counted as lost
            if error is None:
                self._sent, self._sent_at, self._confirmed_at = {}, None, time.monotonic()
            elif error.code() in _NOT_OURS:
                self._sent, self._sent_at = {}, None
                metrics.COMMITS_FAILED.inc()
            else:
                if not broker.transient(error):
                    self._refused = error
                self._failed(error.str())

    def _failed(self, why: str) -> None:
        metrics.COMMITS_FAILED.inc()
        log.info("a commit of offsets failed", extra={"group": self._group, "why": why})
        self._wanted = self._sent | self._wanted
        self._sent, self._sent_at = {}, None
        self._again_at = time.monotonic() + AGAIN_SECONDS
