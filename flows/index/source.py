"""The index's input: a member of the consumer group that reads each partition from the position in the database.

Positions come from `sluice.stream_offset`. The group's own offsets follow after the commit, for lag tools only. One poll is
one `Batch`; the flow applies it before the next poll.
"""

import logging

from typing_extensions import override

from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import Part, watermarks
from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.health import Health
from connectors.runtime.retry_database import retry_database
from flows.index.batch_timer import BatchSize
from flows.index.decode import TOPICS, Batch
from flows.index.projection import Maintenance
from flows.index.store import IndexStore
from schemas.settings import Settings

BATCH_BYTES = 16 * 1024 * 1024  # of messages in one transaction, plus one chunk of a poll

log = logging.getLogger("index")


class IndexPartition(CheckpointedPartition[Batch, dict[Part, int]]):
    """Reads the three topics, in the partitions that the group assigns."""

    def __init__(
        self,
        settings: Settings,
        health: Health,
        store: IndexStore,
        unread: dict[Part, int],
        maintenance: Maintenance | None,
    ) -> None:
        super().__init__(health)
        self._unread = unread
        self._settings = settings
        self._store = store
        self._next: dict[Part, int] = {}
        self._size = BatchSize(settings)
        self._maintenance = maintenance
        if self._maintenance is not None:
            self._maintenance.start()
        self._consumer = GroupConsumer(settings, "index", TOPICS, starts=self._starts, lost=self._lost)
        health.report("idle")

    def _starts(self, parts: list[Part]) -> dict[Part, int]:
        marks = watermarks(self._settings, TOPICS) if parts else {}
        known = {part: marks[part] for part in parts}
        starts = retry_database(lambda: self._store.starts(known), self.health) if parts else {}
        log.info("assigned", extra={"partitions": len(parts)})
        self._next |= starts
        return starts

    def _lost(self, parts: list[Part]) -> None:
        for part in parts:
            self._next.pop(part, None)

    @override
    def poll(self) -> list[Batch]:
        if self._maintenance is not None:
            self._maintenance.check()
        self._seek_unread()
        if self._draining:
            return []
        self._size.ended()  # the engine polls again after the sink has committed
        messages = self._consumer.poll(self._size.limit, most_bytes=BATCH_BYTES)
        self._size.begun(len(messages))
        spans: dict[Part, tuple[int, int]] = {}
        for message in messages:
            part = (message.topic() or "", message.partition() or 0)
            begin, _ = spans.get(part, (self._next.get(part, message.offset()), 0))
            spans[part] = (begin or 0, (message.offset() or 0) + 1)
        self._next |= {part: end for part, (_, end) in spans.items()}
        self.health.report("working" if messages else "idle")
        return [Batch(messages, spans)] if messages else []

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
