"""Offsets of topics and consumer groups, from the broker and from the database: `Offsets`.

The index stores its offsets in `sluice.stream_offset`, in the transaction of its rows. These are authoritative; the broker's are
a copy. For other groups the broker's offsets are authoritative. Topic names in arguments and results have no prefix.

Used by control, ops and back-pressure. Every request has a deadline; all methods raise LogUnavailable when the broker does not
answer.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType
from psycopg.rows import tuple_row

from connectors.kafka import client as broker
from connectors.kafka.log import ANSWER_SECONDS, LogUnavailable, Part, admin, answers, cluster_id, unless_moving
from connectors.postgres.connection import tuple_database
from connectors.postgres.shards import Shards
from connectors.runtime import watchdog
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE, REPO_BACKFILL, REPO_RESYNC

BROKER_WAIT_SECONDS = 10.0
NO_OFFSET = -1
GROUP_TOPICS = {
    "backfill": (REPO_RESYNC, REPO_BACKFILL),
    "index": (FIREHOSE_LIVE, FIREHOSE_BACKFILL, LABEL_LIVE),
}


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Lag of one group in one partition. `position`: the group's next offset. `start`, `end`: watermarks of the partition."""

    group: str
    topic: str
    partition: int
    start: int
    position: int
    end: int

    @property
    def lag(self) -> int:
        """Messages not processed yet. Messages that retention removed do not count."""
        return max(0, self.end - max(self.position, self.start))

    @property
    def past_end(self) -> bool:
        """Whether the position is beyond the end of the log (B9), because the log was replaced or restored."""
        return self.position > self.end

    @property
    def lost(self) -> int:
        """Messages that retention removed before the group processed them."""
        return max(0, self.start - self.position) if self.position else 0


class Offsets:
    """Reads offsets through one admin client, and one consumer per group. Connects on first use; used in one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AdminClient | None = None
        self._cluster: str | None = None
        self._readers: dict[str, Consumer] = {}
        self._shards = Shards(settings, lambda one: tuple_database(one, "sluice offsets")) if settings.shards else None

    @property
    def cluster(self) -> str:
        """The broker's cluster id, requested once."""
        if self._cluster is None:
            self._cluster = cluster_id(self._settings, BROKER_WAIT_SECONDS)
        return self._cluster

    def parts(self, topics: Iterable[str]) -> list[Part]:
        """All partitions of these topics, sorted by topic as given, then by number."""
        names = {self._settings.topic(topic): topic for topic in topics}
        with self._request(self._settings.kafka_bootstrap, "; is SLUICE_KAFKA_BOOTSTRAP right?"):
            only = (next(iter(names)),) if len(names) == 1 else ()
            known = self._admin().list_topics(*only, timeout=ANSWER_SECONDS).topics
        for name in sorted(names):
            error = known[name].error if name in known else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
            if error is not None and error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise LogUnavailable(f"topic {name} does not exist; run `sluice topics apply`")
            if error is not None:
                raise LogUnavailable(f"{name}: {error.str()}")
        return [(names[name], part) for name in names for part in sorted(known[name].partitions)]

    def find(self, parts: Iterable[Part], spec: OffsetSpec) -> dict[Part, int]:
        """The offset that `spec` describes, in each partition; `NO_OFFSET` if no message matches a timestamp."""
        return {part: int(result.offset) for part, result in self._list(parts, spec).items()}

    def starts(self, parts: Iterable[Part]) -> dict[Part, int]:
        """The first available offset."""
        return self.find(parts, OffsetSpec.earliest())

    def ends(self, parts: Iterable[Part]) -> dict[Part, int]:
        """The offset of the next message to be written."""
        return self.find(parts, OffsetSpec.latest())

    def newest_time(self, parts: Iterable[Part]) -> float:
        """Unix time of the newest message in any of these partitions; 0 if there is no message."""
        times = (result.timestamp / 1000 for result in self._list(parts, OffsetSpec.max_timestamp()).values())
        return max(times, default=0.0)

    def _list(self, parts: Iterable[Part], spec: OffsetSpec) -> dict[Part, Any]:
        asked = {TopicPartition(self._settings.topic(topic), part): (topic, part) for topic, part in parts}
        if not asked:
            return {}
        with self._request(self._settings.kafka_bootstrap):
            wanted = dict.fromkeys(asked, spec)
            found = unless_moving(lambda: answers(self._admin().list_offsets(wanted, request_timeout=ANSWER_SECONDS)))
        return {asked[place]: result for place, result in found.items()}

    def retention(self, topics: Iterable[str]) -> dict[str, float]:
        """Topic → seconds that the broker keeps its messages. Topics without a limit are left out."""
        names = {self._settings.topic(topic): topic for topic in topics}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        with self._request(self._settings.kafka_bootstrap):
            configs = unless_moving(
                lambda: answers(self._admin().describe_configs(resources, request_timeout=ANSWER_SECONDS))
            )
        kept = {names[resource.name]: int(config["retention.ms"].value) for resource, config in configs.items()}
        return {topic: millis / 1000 for topic, millis in kept.items() if millis > 0}

    def committed(self, group: str, parts: Iterable[Part]) -> dict[Part, int]:
        """The group's offsets in the broker. Partitions without one are left out."""
        asked = {(self._settings.topic(topic), part): (topic, part) for topic, part in parts}
        places = [TopicPartition(*place) for place in asked]
        with self._request(self._settings.group(group)):
            answer = unless_moving(lambda: self._reader(group).committed(places, timeout=ANSWER_SECONDS))
        return {asked[place.topic, place.partition]: place.offset for place in answer if place.offset >= 0}

    def _reader(self, group: str) -> Consumer:
        # not the admin client's list_consumer_group_offsets: while a coordinator loads, librdkafka 2.16 dereferences the
        # admin client's missing consumer group and crashes (rd_kafka_handle_OffsetFetch)
        if group not in self._readers:
            self._readers[group] = broker.reader(self._settings, group, use=f"offsets-{group}")
        return self._readers[group]

    def _admin(self) -> AdminClient:
        if self._client is None:
            self._client = admin(self._settings)
        return self._client

    @contextmanager
    def _request(self, target: str, remedy: str = "") -> Iterator[None]:
        """Turn KafkaException into LogUnavailable and close the clients, which may keep failing after the broker is back."""
        watchdog.mark()
        try:
            yield
        except KafkaException as err:
            self.close()
            raise LogUnavailable(f"{target}: {err}{remedy}") from err
        finally:
            watchdog.mark()

    def close(self) -> None:
        """Close the clients; the next request opens new ones."""
        self._client = None
        for reader in self._readers.values():
            broker.close(reader)
        self._readers.clear()
        for shard in self._shards.all() if self._shards is not None else ():
            shard.close()

    def stored(self, db: psycopg.Connection[Any], group: str) -> dict[Part, int]:
        """The offsets of this group in the database, for this broker. Raises psycopg.Error.

        With several shards: in each of them, but for those that do not answer.
        """
        prefix = self._settings.kafka_topic_prefix
        statement = queries("control")["stored_offsets"]
        values = (self.cluster, self._settings.group(group))
        if self._shards is None:
            rows = db.cursor(row_factory=tuple_row).execute(statement, values).fetchall()
        else:
            rows = list(chain(*self._shards.answering(lambda shard: shard().execute(statement, values).fetchall())))
        return {(str(topic).removeprefix(prefix), int(part)): int(next_) for topic, part, next_ in rows}

    def settled(self, db: psycopg.Connection[Any], group: str, parts: Iterable[Part]) -> dict[Part, int]:
        """The group's offsets: the database's, or else the broker's. Raises psycopg.Error."""
        return self.committed(group, parts) | self.stored(db, group)

    def lags(self, db: psycopg.Connection[Any]) -> list[PartitionLag]:
        """Every group in every partition that it reads. Raises psycopg.Error."""
        every = self.parts(topic for topics in GROUP_TOPICS.values() for topic in topics)
        parts = {group: [part for part in every if part[0] in topics] for group, topics in GROUP_TOPICS.items()}
        positions = {group: self.settled(db, group, mine) for group, mine in parts.items()}
        # read after the positions, otherwise a group that keeps up would appear to be past the end
        starts, ends = self.starts(every), self.ends(every)
        return [
            PartitionLag(group, *part, starts[part], positions[group].get(part, starts[part]), ends[part])
            for group, mine in parts.items()
            for part in mine
        ]
