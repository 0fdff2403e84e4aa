"""Where topics and consumer groups stand: broker and tables → `Standing`s, from which lag is read.

The index stores its offsets in `sluice.stream_offset`, in the transaction of its rows; those are authoritative. Other
groups stand where the broker says. All calls raise LogUnavailable when the broker does not answer.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from psycopg.rows import tuple_row

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable, Part, admin, answers, cluster_id
from connectors.runtime import watchdog
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE, REPO_BACKFILL, REPO_RESYNC

ANSWER_SECONDS = 10.0
BROKER_WAIT_SECONDS = 10.0
NO_OFFSET = -1
GROUP_TOPICS = {
    "backfill": (REPO_RESYNC, REPO_BACKFILL),
    "index": (FIREHOSE_LIVE, FIREHOSE_BACKFILL, LABEL_LIVE),
}


@dataclass(frozen=True, slots=True)
class Standing:
    """One group in one partition. `position` is the next offset to settle, `start` and `end` are the log's."""

    group: str
    topic: str
    partition: int
    start: int
    position: int
    end: int

    @property
    def lag(self) -> int:
        """Messages not settled yet; what the log has lost does not count."""
        return max(0, self.end - max(self.position, self.start))

    @property
    def past_end(self) -> bool:
        """The group stands where the log has never been (B9): the log was replaced or restored."""
        return self.position > self.end

    @property
    def lost(self) -> int:
        """Messages that retention removed before the group settled them."""
        return max(0, self.start - self.position) if self.position else 0


class Positions:
    """Reads positions through an admin client, and a reader per group. Topic names go in and come out without the prefix."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AdminClient | None = None
        self._cluster: str | None = None
        self._readers: dict[str, Consumer] = {}  # never subscribed, so never a member of the group

    @property
    def cluster(self) -> str:
        """The broker's cluster id, asked for once."""
        if self._cluster is None:
            self._cluster = cluster_id(self._settings, BROKER_WAIT_SECONDS)
        return self._cluster

    def parts(self, topics: Iterable[str]) -> list[Part]:
        """Every partition of these topics. Raises LogUnavailable for a topic that is not there."""
        names = {self._settings.topic(topic): topic for topic in topics}
        with self._asking(self._settings.kafka_bootstrap, "; is SLUICE_KAFKA_BOOTSTRAP right?"):
            known = self._admin().list_topics(timeout=ANSWER_SECONDS).topics
        missing = sorted(name for name in names if name not in known)
        if missing:
            raise LogUnavailable(f"topic {missing[0]} does not exist; run `sluice topics apply`")
        return [(names[name], part) for name in names for part in sorted(known[name].partitions)]

    def offsets(self, parts: Iterable[Part], spec: OffsetSpec) -> dict[Part, int]:
        """Offset of each partition that the spec asks for; `NO_OFFSET` where no message fits a timestamp."""
        asked = {TopicPartition(self._settings.topic(topic), part): (topic, part) for topic, part in parts}
        if not asked:
            return {}
        with self._asking(self._settings.kafka_bootstrap):
            futures = self._admin().list_offsets(dict.fromkeys(asked, spec), request_timeout=ANSWER_SECONDS)
            return {asked[place]: int(found.offset) for place, found in answers(futures, ANSWER_SECONDS).items()}

    def starts(self, parts: Iterable[Part]) -> dict[Part, int]:
        """First offset that the log still has."""
        return self.offsets(parts, OffsetSpec.earliest())

    def ends(self, parts: Iterable[Part]) -> dict[Part, int]:
        """Offset that the next message will get."""
        return self.offsets(parts, OffsetSpec.latest())

    def committed(self, group: str, parts: Iterable[Part]) -> dict[Part, int]:
        """The group's offsets in the broker; partitions without one are left out."""
        asked = {(self._settings.topic(topic), part): (topic, part) for topic, part in parts}
        with self._asking(self._settings.group(group)):
            answer = self._reader(group).committed([TopicPartition(*place) for place in asked], timeout=ANSWER_SECONDS)
        return {asked[place.topic, place.partition]: place.offset for place in answer if place.offset >= 0}

    def _reader(self, group: str) -> Consumer:
        # not the admin client's list_consumer_group_offsets: while a coordinator loads, its refresh dereferences the
        # consumer group that an admin client does not have (librdkafka 2.16: rd_kafka_handle_OffsetFetch), and crashes
        if group not in self._readers:
            own = {"group.id": self._settings.group(group), "enable.auto.commit": False, "log_level": 0}
            self._readers[group] = Consumer(broker.options(self._settings, f"offsets-{group}") | own)
        return self._readers[group]

    def _admin(self) -> AdminClient:
        if self._client is None:
            self._client = admin(self._settings)
        return self._client

    @contextmanager
    def _asking(self, whom: str, remedy: str = "") -> Iterator[None]:
        """Errors as LogUnavailable. The clients go with one: an old client may fail for ever while the broker is there."""
        watchdog.mark()
        try:
            yield
        except KafkaException as err:
            self._client = None
            for reader in self._readers.values():
                broker.close(reader)
            self._readers.clear()
            raise LogUnavailable(f"{whom}: {err}{remedy}") from err
        finally:
            watchdog.mark()

    def stored(self, db: psycopg.Connection[Any], group: str) -> dict[Part, int]:
        """Offsets that this group keeps in the tables, for this broker."""
        prefix = self._settings.kafka_topic_prefix
        statement = queries("control")["stored_offsets"]
        cursor = db.cursor(row_factory=tuple_row).execute(statement, (self.cluster, self._settings.group(group)))
        return {(str(topic).removeprefix(prefix), int(part)): int(next_) for topic, part, next_ in cursor}

    def standings(self, db: psycopg.Connection[Any]) -> list[Standing]:
        """Every group in every partition that it reads."""
        found = []
        parts = self.parts(topic for topics in GROUP_TOPICS.values() for topic in topics)
        positions: dict[tuple[str, Part], int] = {}
        for group, topics in GROUP_TOPICS.items():
            mine = [part for part in parts if part[0] in topics]
            for part, position in (self.committed(group, mine) | self.stored(db, group)).items():
                positions[group, part] = position
        # after the positions, or a group that keeps up would seem to stand past the end
        starts, ends = self.starts(parts), self.ends(parts)
        for group, topics in GROUP_TOPICS.items():
            for part in parts:
                if part[0] in topics:
                    position = positions.get((group, part), starts[part])
                    found.append(Standing(group, *part, starts[part], position, ends[part]))
        return found
