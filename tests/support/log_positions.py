"""Where the log ends, and where the tables stand in it."""

from __future__ import annotations

import psycopg
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

INDEXED = ("firehose_backfill", "firehose_live", "label_live")
Positions = dict[tuple[str, int], int]
"""(topic, partition) → offset"""


def log_ends(bootstrap: str, prefix: str) -> Positions:
    """The ends of the topics that the index reads."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    topics = [prefix + topic for topic in INDEXED]
    parts = [(topic, part) for topic in topics for part in admin.list_topics(timeout=60).topics[topic].partitions]
    asked = admin.list_offsets({TopicPartition(*part): OffsetSpec.latest() for part in parts})
    return {(part.topic, part.partition): future.result(60).offset for part, future in asked.items()}


def stored(database: str) -> Positions:
    """The positions in the tables: the next offset of each partition."""
    with psycopg.connect(database) as db:
        return {
            (topic, part): at for topic, part, at in db.execute("select topic, part, next from sluice.stream_offset")
        }
