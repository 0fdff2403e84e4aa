"""Messages of the log → events by repo, labels and dead letters."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from connectors.kafka.producer import Out, dead_letter
from connectors.postgres.stored_forms import rev_column
from flows.index.stream_offsets import Spans
from protocol.labels import MAX_KEY_BYTES
from schemas import wire
from schemas.reasons import DeadReason
from schemas.topics import FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE
from steps.gate.batch import OffsetEvent
from steps.gate.key_size import KeyTooLarge, check_size

TOPICS = (FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE)
"""The topics that the index reads."""
_WITH_REV = (wire.CreateEvent, wire.CommitEvent)


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages of one poll, in the order of each partition, and their spans: partition → (first, next) offset."""

    messages: list[Message]
    spans: Spans


@dataclass(slots=True)
class Decoded:
    """The batch as events: queues by DID, labels, and dead letters of messages that do not decode."""

    batch: Batch
    queues: dict[str, list[OffsetEvent]] = field(default_factory=lambda: defaultdict(list))
    labels: list[wire.LabelEvent] = field(default_factory=list)
    letters: list[Out] = field(default_factory=list)
    too_large: int = 0  # dead letters whose key is too large for an index
    newest_time: str = ""


def decode(batch: Batch, prefix: str = "") -> Decoded:
    """Messages → events by repo. Never raises: a message that does not decode becomes a dead letter."""
    decoded = Decoded(batch)
    for message in batch.messages:
        topic, value = (message.topic() or "").removeprefix(prefix), message.value() or b""
        try:
            if topic == LABEL_LIVE:
                label = wire.decode_label(value)
                check_size(topic, label)
                decoded.labels.append(label)
                continue
            event: Any = wire.decode_live(value) if topic == FIREHOSE_LIVE else wire.decode_backfill(value)
            if len(value) > MAX_KEY_BYTES:  # a smaller message has no larger key
                check_size(topic, event)
            if isinstance(event, _WITH_REV):
                rev_column(event.rev)
            decoded.queues[event.did].append(
                OffsetEvent(message.offset() or 0, event, len(value), received_at(message))
            )
            if topic == FIREHOSE_LIVE:
                decoded.newest_time = max(decoded.newest_time, event.time)
        except (msgspec.MsgspecError, KeyTooLarge, ValueError) as err:  # ValueError: a rev that is not a TID
            large = isinstance(err, KeyTooLarge)
            decoded.too_large += large
            reason = DeadReason.REFUSED_BY_DATABASE if large else DeadReason.UNDECODABLE
            at = (message.partition() or 0, message.offset() or 0)
            decoded.letters.append(dead_letter(topic, reason, str(err), value, at=at, received=received_at(message)))
    return decoded


def received_at(message: Message) -> int | None:
    """When the log received the message, Unix time in ms."""
    kind, received = message.timestamp()
    return received if kind != TIMESTAMP_NOT_AVAILABLE else None
