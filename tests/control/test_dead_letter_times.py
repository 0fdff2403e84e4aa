"""A retry of a dead letter keeps the time of receipt."""

from __future__ import annotations

from typing import cast

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, TIMESTAMP_NOT_AVAILABLE, Message

from connectors.atproto.stream_sockets import Frame
from connectors.kafka.producer import Out
from control.dead_letters import StoredMessage, frame_of
from flows.index.decode import Batch, decode, received_at
from flows.streams import dead_frame
from schemas import wire
from schemas.reasons import DeadReason

RECEIVED = 1_700_000_000_123


class UndecodableMessage:
    """What `decode` reads of a Kafka message."""

    def __init__(self, kind: int, received: int) -> None:
        self.timestamp = lambda: (kind, received)
        self.topic, self.value = lambda: "firehose_live", lambda: b"no JSON"
        self.partition, self.offset = lambda: 3, lambda: 7


def letter_of(out: Out) -> wire.DeadLetter:
    return wire.decode_dead_letter(out.value)


@pytest.mark.parametrize("received", [RECEIVED, 0])
def test_a_retried_frame_has_the_time_of_its_receipt(received: int) -> None:
    """H6: with the time of the retry, an #account event of a PDS whose clock is ahead would win over later events."""
    frame = Frame("wss://relay", b"payload", received=received)
    assert frame_of(letter_of(dead_frame("firehose", frame, DeadReason.FAILED.value, "x"))) == frame


@pytest.mark.parametrize(("kind", "received"), [(TIMESTAMP_LOG_APPEND_TIME, RECEIVED), (TIMESTAMP_NOT_AVAILABLE, None)])
def test_a_retried_message_has_the_time_of_the_log(kind: int, received: int | None) -> None:
    """H6: the gate compares these times (N10)."""
    (out,) = decode(Batch([cast(Message, UndecodableMessage(kind, RECEIVED))], {})).letters
    stored = StoredMessage(letter_of(out))
    assert received_at(cast(Message, stored)) == received
    assert (stored.topic(), stored.partition(), stored.offset(), stored.value()) == ("firehose_live", 3, 7, b"no JSON")
