"""The newest frames of an upstream: what a reconnect needs, in little memory; and polls of the log, bounded in bytes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import cbrrr

from connectors.atproto import recent_frames as recent
from connectors.atproto.recent_frames import RecentFrames
from connectors.kafka import consumer as log_consumer
from connectors.kafka.consumer import GroupConsumer
from schemas.settings import Settings

DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


def frame(seq: int, padding: int = 0) -> bytes:
    body = {"seq": seq, "did": DID, "time": "", "padding": bytes(padding)}
    return bytes(cbrrr.encode_dag_cbor({"op": 1, "t": "#identity"}) + cbrrr.encode_dag_cbor(body))


def test_sixteen_large_frames_are_not_kept_and_their_seqs_are() -> None:
    """H2: before, 16 frames of up to 16 MB each."""
    kept = RecentFrames()
    tracemalloc.start()
    for seq in range(1, 40):
        kept.add(frame(seq, 1_000_000))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < recent.FRAMES * recent.FRAME_BYTES
    assert kept.last_seq() == 39
    assert kept.newest() is None


def test_the_last_seq_is_of_what_we_understand_and_an_error_frame_can_be_dropped() -> None:
    """B8: an unknown type may not say where the stream goes on."""
    kept = RecentFrames()
    kept.add(frame(7))
    kept.add(cbrrr.encode_dag_cbor({"op": 1, "t": "#novelty"}) + cbrrr.encode_dag_cbor({"seq": 900}))
    error = cbrrr.encode_dag_cbor({"op": -1}) + cbrrr.encode_dag_cbor({"error": "FutureCursor"})
    kept.add(error)
    assert kept.newest() == error
    assert kept.last_seq() == 7
    kept.drop_newest()
    kept.clear()
    assert kept.last_seq() is None


class Fetched:
    """As much of a message and of a consumer as a poll asks."""

    def __init__(self, size: int) -> None:
        self._value = bytes(size)
        self.calls = 0

    def value(self) -> bytes:
        return self._value

    def error(self) -> None:
        return None

    def consume(self, count: int, _seconds: float) -> list[Any]:
        self.calls += 1
        return [self] * count


def test_a_poll_ends_with_the_chunk_that_passes_its_bytes() -> None:
    """H2: 5,000 messages of 100 KB are 500 MB."""
    consumer = GroupConsumer(Settings(), "group", ())
    fetched = Fetched(100_000)
    consumer._consumer = fetched  # type: ignore[assignment]  # no broker
    messages = consumer.poll(5000, 0.0, most_bytes=16 * 1024 * 1024)
    assert len(messages) == 1 + log_consumer.CHUNK_MESSAGES  # the first message comes alone
    small = Fetched(10)
    consumer._consumer = small  # type: ignore[assignment]
    assert len(consumer.poll(5000, 0.0, most_bytes=16 * 1024 * 1024)) == 5000
