"""Consumer group members that read several topics."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable, Part
from connectors.runtime import metrics, watchdog
from connectors.runtime.work import REST_SECONDS
from schemas.settings import Settings
from schemas.topics import MAX_MESSAGE_BYTES

POLL_BYTES = 64 * 1024 * 1024
QUEUED_BYTES = 4 * 1024 * 1024
CHUNK_MESSAGES = 200
GATHER_SECONDS = 0.02
"""After the first message of a poll: a batch of one message costs as much as a batch of many."""
COMMIT_SECONDS = 10.0
"""A commit without a response for this long counts as lost; its offsets are sent again with the next one."""
AGAIN_SECONDS = 0.5
SETTLE_SECONDS = 5.0
"""Time limit of `close` for the last commit."""
UNKNOWN_SECONDS = 45.0
"""A topic that is unknown for this long does not exist; librdkafka refreshes metadata every ten seconds."""
FAILING_SECONDS = 60.0
"""A warning is logged when no commit is confirmed for this long, at most once in this time."""
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
    """One member of a consumer group over several co-partitioned topics (range assignor: partition k of each topic together).

    `starts(parts)` is called at every assignment and returns start offsets that override the group's. Partitions missing in
    it start at the group's offset, or at the start of the log. `lost(parts)` is called with revoked partitions.

    Commits are asynchronous, because librdkafka's synchronous commit can block forever if the coordinator loses the request.
    One commit is in flight at a time; newer offsets, and those of a failed or unanswered commit, go with the next one.

    `fetch_seconds`: how long the broker may hold a request for messages, which it answers at once with the first one. New partitions,
    and a `seek`, wait for the end of the request before.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Iterable[str],
        *,
        starts: Callable[[list[Part]], dict[Part, int]] | None = None,
        lost: Callable[[list[Part]], None] | None = None,
        fetch_seconds: float = 1.0,
    ) -> None:
        self._settings = settings
        self._fetch_seconds = fetch_seconds
        self._use = f"group-{group}"
        self._group = settings.group(group)
        self._topics = [settings.topic(name) for name in topics]
        self._starts = starts
        self._lost = lost
        self._consumer: Consumer | None = None
        self._commits = _Commits(self._group)
        self._unknown = float("-inf"), float("-inf")  # time.monotonic of the first and last "unknown topic" error
        self._taken: list[Message] = []  # by the running `poll`
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
                    "fetch.message.max.bytes": 32 * 1024,  # per partition, compressed; records compress about tenfold
                    "message.max.bytes": MAX_MESSAGE_BYTES,
                    "receive.message.max.bytes": 100 * 1024 * 1024,
                    "queued.min.messages": 10_000,
                    # of all topics in one queue: a live event waits for the backfill's messages before it
                    "queued.max.messages.kbytes": QUEUED_BYTES // 1024,
                    "fetch.queue.backoff.ms": 100,  # a full queue (default: a second) is empty earlier
                    "fetch.wait.max.ms": int(self._fetch_seconds * 1000),
                    # the group leader omits topics that have no partition leader while a broker starts, and checks them
                    # again only after this interval (default: five minutes)
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

    def poll(self, limit: int, wait_seconds: float = REST_SECONDS, most_bytes: int = POLL_BYTES) -> list[Message]:
        """Up to `limit` messages, and about `most_bytes` bytes; waits for the first one. Raises LogUnavailable on permanent errors."""
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
        self._send()  # retries failed or unanswered commits even if there are no new offsets
        return good

    def _consume(self, limit: int, wait_seconds: float, most_bytes: int) -> list[Message]:
        """Wait for a message, then consume in chunks: one librdkafka call is limited by the number of messages, not by their size.

        A rebalance during a chunk drops the earlier ones: their partitions may already belong to another member, or are read
        again from their start offsets.
        """
        taken = self._taken = []
        wanted, size, end = 1, 0, time.monotonic() + wait_seconds
        while wanted and size < most_bytes:
            some = self._client().consume(wanted, max(0.0, end - time.monotonic()))
            watchdog.mark()
            if taken == []:
                end = time.monotonic() + min(wait_seconds, GATHER_SECONDS)
            taken += some
            size += sum(len(message.value() or b"") for message in some)
            if len(some) < wanted:
                break
            wanted = min(CHUNK_MESSAGES, limit - len(taken))
        return taken

    def _passes(self, error: KafkaError) -> bool:
        """Whether an error is transient. So is an unknown topic at first: a starting broker has not loaded all topics."""
        if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            return broker.transient(error)
        now = time.monotonic()
        if now - self._unknown[1] > UNKNOWN_SECONDS:
            self._unknown = now, now
        self._unknown = self._unknown[0], now
        return now - self._unknown[0] < UNKNOWN_SECONDS

    def _gone(self, error: KafkaError, what: str) -> LogUnavailable:
        """The exception for an error. A client with a fatal error is unusable and closed; the next call creates a new one."""
        if error.fatal() and self._consumer is not None:
            broker.close(self._consumer)
            self._consumer = None
            self.assigned.clear()
        return LogUnavailable(f"{what}: {error.str()}")

    def commit(self, positions: dict[Part, int]) -> None:
        """Commit offsets (next to read) asynchronously. Partitions that are no longer assigned are left out.

        Raises LogUnavailable if an earlier commit failed permanently.
        """
        self.commit_with_poll(positions)
        self._send()

    def commit_with_poll(self, positions: dict[Part, int]) -> None:
        """As `commit`, from another thread than `poll`: librdkafka's commit waits while a poll runs, so the next poll's end sends them."""
        self._commits.check()
        self._commits.add(positions)

    def _send(self) -> bool:
        return self._consumer is not None and self._commits.send(self._consumer, self.assigned)

    def settle(self, seconds: float) -> bool:
        """Wait until all offsets are committed; False after `seconds`. Only for the polling thread, after its last `poll`."""
        deadline = time.monotonic() + seconds
        while self._send():
            if time.monotonic() > deadline or self._consumer is None:
                return False
            watchdog.mark()
            self._consumer.poll(0.05)  # runs callbacks; a message dropped here is not committed, so it is not lost
        return True

    def seek(self, part: Part, offset: int) -> None:
        self._client().seek(TopicPartition(part[0], part[1], offset))

    def pause(self, parts: Iterable[Part]) -> None:
        """Stop reading these partitions until `resume`."""
        self._client().pause([TopicPartition(*part) for part in parts])

    def resume(self, parts: Iterable[Part]) -> None:
        self._client().resume([TopicPartition(*part) for part in parts])

    def close(self) -> None:
        """Wait for the last commit and leave the group, each within a few seconds."""
        if self._consumer is not None:
            with suppress(KafkaException):  # paused, so that polls return no messages
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
        consumer.resume(partitions)  # a partition revoked while paused would be paused when assigned again

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        parts = [(p.topic, p.partition) for p in partitions]
        self.assigned -= set(parts)
        self._taken.clear()
        if self._lost:
            self._lost(parts)
        consumer.unassign()


class _Commits:
    """Offsets to commit and the commit in flight. Thread-safe: one thread commits, another polls."""

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
        with self._lock:
            if not self._wanted and self._sent_at is None:
                self._confirmed_at = time.monotonic()
            self._wanted |= positions

    def check(self) -> None:
        """Raise LogUnavailable, once, for a permanent failure; log a warning if no commit is confirmed for a long time."""
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
        """Send the offsets, unless a commit is in flight. False if nothing is left to send or to confirm."""
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
        """librdkafka's `on_commit` callback; runs inside `poll`."""
        with self._lock:
            if {(one.topic, one.partition): one.offset for one in positions} != self._sent:
                return  # a late response to a commit that counted as lost
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
