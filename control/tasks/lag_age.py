"""The age of the oldest message that a group has not processed, from the message's own timestamp.

Unlike lag in messages, this can be compared with retention. Reads one message of each partition that has lag.
"""

import time
from collections.abc import Iterable

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaException, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable
from connectors.kafka.offsets import PartitionLag
from connectors.runtime import watchdog
from schemas.settings import Settings
from schemas.topics import MAX_MESSAGE_BYTES

READ_SECONDS = 10.0


def oldest_unsettled(settings: Settings, lags: Iterable[PartitionLag]) -> dict[tuple[str, str], float]:
    """(group, topic) → seconds; 0 if the group has processed everything. Raises LogUnavailable.

    A topic whose messages could not all be read in time is left out.
    """
    ages: dict[tuple[str, str], float] = {}
    behind: dict[tuple[str, str], list[PartitionLag]] = {}
    for one in lags:
        ages.setdefault((one.group, one.topic), 0.0)
        if one.lag:
            behind.setdefault((one.group, one.topic), []).append(one)
    if not behind:
        return ages
    consumer = broker.reader(
        settings,
        "ages",
        auto_offset_reset="earliest",
        queued_min_messages=1,
        fetch_message_max_bytes=1024,  # of a partition; the broker sends one batch at least
        message_max_bytes=MAX_MESSAGE_BYTES,
    )
    try:
        for (group, topic), parts in behind.items():
            oldest = _first_time(consumer, settings.topic(topic), parts)
            if oldest is None:
                del ages[group, topic]
            else:
                ages[group, topic] = max(0.0, time.time() - oldest)
    except KafkaException as err:
        raise LogUnavailable(f"{settings.kafka_bootstrap}: {err}") from err
    finally:
        broker.close(consumer)
    return ages


def _first_time(consumer: Consumer, topic: str, parts: list[PartitionLag]) -> float | None:
    """Unix time of the oldest among the first messages at these positions; None if one of them did not arrive in time."""
    left = {one.partition for one in parts}
    consumer.assign([TopicPartition(topic, one.partition, max(one.position, one.start)) for one in parts])
    oldest: float | None = None
    deadline = time.monotonic() + READ_SECONDS
    while left and time.monotonic() < deadline:
        watchdog.mark()
        for message in consumer.consume(100, 0.2):
            part = message.partition()
            if message.error() is not None or part not in left:
                continue
            left.discard(part)
            consumer.pause([TopicPartition(topic, part)])
            kind, stamp = message.timestamp()
            if kind != TIMESTAMP_NOT_AVAILABLE:
                oldest = min(stamp / 1000, oldest or float("inf"))
    return None if left else oldest
