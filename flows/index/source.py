"""The index's input: a member of the consumer group that reads each partition from the position in the database.

Positions come from `sluice.stream_offset`. The group's own offsets follow after the commit, for lag tools only. One poll is
one `Batch` for each shard; the flow applies them before the next poll. The partitions of a shard that does not answer are paused, and
read again from the position in its database when it does.
"""

import logging
from collections.abc import Iterable

from confluent_kafka import KafkaException, Message
from typing_extensions import override

from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import Part, watermarks
from connectors.postgres.shards import Shards
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.health import Health
from connectors.runtime.retry_database import retry_database
from flows.index.batch_timer import BatchSize
from flows.index.decode import TOPICS, Batch
from flows.index.projection import Maintenance
from flows.index.store import IndexStore
from schemas.settings import Settings

BATCH_BYTES = 8 * 1024 * 1024  # of messages in one transaction, plus one chunk of a poll

log = logging.getLogger("index")


class IndexPartition(CheckpointedPartition[Batch, dict[Part, int]]):
    """Reads the three topics, in the partitions that the group assigns."""

    def __init__(
        self,
        settings: Settings,
        health: Health,
        stores: Shards[IndexStore],
        unread: dict[Part, int],
        *,
        down: set[int],
        maintenance: Maintenance | None,
    ) -> None:
        super().__init__(health)
        self._unread = unread
        self._settings = settings
        self._stores = stores
        self._down = down
        self._paused: set[int] = set()  # shards among `down` whose partitions are paused
        self._next: dict[Part, int] = {}
        self._size = BatchSize(settings)
        self._maintenance = maintenance
        if self._maintenance is not None:
            self._maintenance.start()
        self._consumer = GroupConsumer(settings, "index", TOPICS, starts=self._starts, lost=self._lost)
        health.report("idle")

    def _starts(self, parts: list[Part]) -> dict[Part, int]:
        self._paused.clear()  # the consumer resumes what it is assigned
        starts: dict[Part, int] = {}
        for number in sorted({self._stores.of_partition(part) for _, part in parts}):
            starts |= self._starts_of(number, parts)
        log.info("assigned", extra={"partitions": len(parts)})
        self._next |= starts
        return starts

    def _starts_of(self, number: int, parts: Iterable[Part]) -> dict[Part, int]:
        """Where to read a shard's partitions among these; nothing while it does not answer."""
        marks = watermarks(self._settings, TOPICS)
        known = {part: marks[part] for part in parts if self._stores.of_partition(part[1]) == number}

        def read(store: IndexStore) -> dict[Part, int]:
            return store.starts(known)

        found = retry_database(lambda: self._stores.gather({number: read}), self.health)
        if number not in found:
            self._down.add(number)
            return {}
        self._down.discard(number)
        for part in known:
            self._unread.pop(part, None)  # of a batch that ended late
        return found[number]

    def _follow_shards(self) -> None:
        """Pause the partitions of shards that do not answer; seek and resume them when they do."""
        for number in list(self._down):
            parts = [part for part in self._consumer.assigned if self._stores.of_partition(part[1]) == number]
            if not parts:  # another member has them now
                self._down.discard(number)
                continue
            if number not in self._paused:
                self._consumer.pause(parts)
                self._paused.add(number)
                self._lost(parts)
            if self._stores.resting(number) or not (starts := self._starts_of(number, parts)):
                continue
            self._consumer.resume(parts)
            self._paused.discard(number)
            try:
                for part, at in starts.items():
                    self._consumer.seek(part, at)
            except KafkaException:  # not fetched yet
                self._down.add(number)
                continue
            self._next |= starts
            log.info("a shard answers again", extra={"partitions": len(parts)})

    def _lost(self, parts: list[Part]) -> None:
        for part in parts:
            self._next.pop(part, None)

    @override
    def poll(self) -> list[Batch]:
        if self._maintenance is not None:
            self._maintenance.check()
        self._seek_unread()
        self._follow_shards()
        if self._draining:
            return []
        self._size.ended()  # the engine polls again after the sink has committed
        messages = self._consumer.poll(self._size.limit, most_bytes=BATCH_BYTES)
        self._size.begun(len(messages))
        batches = self._by_shard(messages)
        if self._down and not batches:
            self.health.report(
                "failing",
                f"SLUICE_SHARDS: no answer from {', '.join(self._stores.names[n] for n in sorted(self._down))}",
            )
        else:
            self.health.report("working" if batches else "idle")
        return batches

    def _by_shard(self, messages: list[Message]) -> list[Batch]:
        """A batch for each shard. Messages of shards that do not answer are dropped: they are read again."""
        taken: dict[int, list[Message]] = {}
        spans: dict[int, dict[Part, tuple[int, int]]] = {}
        for message in messages:
            part = (message.topic() or "", message.partition() or 0)
            number = self._stores.of_partition(part[1])
            if number in self._down:
                continue
            taken.setdefault(number, []).append(message)
            own = spans.setdefault(number, {})
            begin, _ = own.get(part, (self._next.get(part, message.offset()), 0))
            own[part] = (begin or 0, (message.offset() or 0) + 1)
        for own in spans.values():
            self._next |= {part: end for part, (_, end) in own.items()}
        return [Batch(taken[number], own) for number, own in spans.items()]

    def _seek_unread(self) -> None:
        """Seek back to the offsets that the sink returned unread."""
        for part, at in self._unread.items():
            if part in self._next:
                self._next[part] = at
                if not self._draining and part in self._consumer.assigned:
                    self._consumer.seek(part, at)
        self._unread.clear()

    @override
    def busy(self) -> bool:
        """Until it drains: the consumer's poll itself waits for messages."""
        return not self._draining

    @override
    def position(self) -> dict[Part, int] | None:
        return dict(self._next) or None

    @override
    def commit(self, position: dict[Part, int]) -> None:
        self._size.ended()
        self._consumer.commit(position)

    @override
    def close(self) -> None:
        if self._maintenance is not None:
            self._maintenance.close()
        self._consumer.close()
