"""Reads spans of a topic's partitions, outside of any consumer group."""

import time
from collections.abc import Iterator

from confluent_kafka import KafkaException, Message, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable
from connectors.runtime import watchdog
from schemas.settings import Settings
from schemas.topics import MAX_MESSAGE_BYTES

READ_SECONDS = 30.0

Spans = dict[int, tuple[int, int]]
"""Partition → (first offset, end) to read."""


def read(settings: Settings, topic: str, spans: Spans, batch: int) -> Iterator[list[Message]]:
    """The messages of these spans in batches of at most `batch`, each partition in order. Raises LogUnavailable."""
    name = settings.topic(topic)
    consumer = broker.reader(
        settings,
        "replay",
        auto_offset_reset="error",
        enable_partition_eof=True,
        message_max_bytes=MAX_MESSAGE_BYTES,
        fetch_message_max_bytes=128 * 1024,  # of a partition, compressed: records shrink tenfold
        queued_max_messages_kbytes=32 * 1024,
    )
    left = {part: end for part, (begin, end) in spans.items() if begin < end}
    consumer.assign([TopicPartition(name, part, spans[part][0]) for part in left])
    try:
        last = time.monotonic()
        while left:
            watchdog.mark()
            found = consumer.consume(batch, 0.1)  # returns a whole batch, or what arrived within 0.1 s
            if found:
                before = set(left)
                good = _within(name, found, left)
                consumer.pause([TopicPartition(name, part) for part in before - set(left)])
                yield good
                last = time.monotonic()
            elif time.monotonic() - last > READ_SECONDS:
                raise LogUnavailable(f"{name}: no message within {READ_SECONDS:.0f} s; is the broker up?")
    except KafkaException as err:
        raise LogUnavailable(f"{name}: {err}") from err
    finally:
        broker.close(consumer)


def _within(name: str, found: list[Message], left: dict[int, int]) -> list[Message]:
    """The messages before their partition's end. A partition that reached its end is removed from `left`."""
    good = []
    for message in found:
        part, offset, error = message.partition() or 0, message.offset() or 0, message.error()
        if error is not None and error.code() != error._PARTITION_EOF:
            raise LogUnavailable(f"{name}: {error.str()}")
        if part not in left:
            continue
        if error is None and offset < left[part]:
            good.append(message)
        if offset + (error is None) >= left[part]:  # the last offsets may be a gap that compaction left
            del left[part]
    return good
