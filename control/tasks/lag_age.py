"""How old is the oldest message that a group has not settled: its standings → seconds, from the messages' own times.

Lag in messages says nothing about retention; this does. One message is read of each partition that has any left over.
"""

import time
from collections.abc import Iterable

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaException, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable
from connectors.kafka.offsets import Standing
from connectors.runtime import watchdog
from schemas.settings import Settings
from schemas.topics import MAX_MESSAGE_BYTES

READ_SECONDS = 10.0


def oldest_unsettled(settings: Settings, standings: Iterable[Standing]) -> dict[tuple[str, str], float]:
    """(group, topic) → seconds, 0 where everything is settled. What cannot be read in time is left out. Raises LogUnavailable."""
    ages: dict[tuple[str, str], float] = {}
    waiting: dict[tuple[str, str], list[Standing]] = {}
    for standing in standings:
        ages.setdefault((standing.group, standing.topic), 0.0)
        if standing.lag:
            waiting.setdefault((standing.group, standing.topic), []).append(standing)
    if not waiting:
        return ages
    consumer = Consumer(
        broker.options(settings, "ages")
        | {
            "group.id": settings.group("ages"),  # assigned by hand: never a member, never a commit
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "queued.min.messages": 1,
            "fetch.message.max.bytes": 1024,  # of a partition; the broker sends one batch at least
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "log_level": 0,
        }
    )
    try:
        for place, parts in waiting.items():
            oldest = _first_time(consumer, settings.topic(place[1]), parts)
            if oldest is None:
                del ages[place]
            else:
                ages[place] = max(0.0, time.time() - oldest)
    except KafkaException as err:
        raise LogUnavailable(f"{settings.kafka_bootstrap}: {err}") from err
    finally:
        broker.close(consumer)
    return ages


def _first_time(consumer: Consumer, topic: str, parts: list[Standing]) -> float | None:
    """Unix time of the oldest of the first messages behind these positions; None where not all answered in time."""
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
