"""The writer of the log without a broker: which messages take which way."""

from __future__ import annotations

from typing import Any

import pytest

from connectors.kafka import producer as log_producer
from connectors.kafka.producer import LARGE_BYTES, LogProducer, Out
from schemas.settings import Settings


class Delivering:
    """As much of a Producer as `send` asks; every message is acknowledged at the flush."""

    made: dict[str, Delivering] = {}  # noqa: RUF012  # one test's

    def __init__(self, options: dict[str, Any], **_more: Any) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self._reports: list[Any] = []
        self.made[options["compression.type"]] = self

    def produce(self, topic: str, value: bytes, key: str, on_delivery: Any, timestamp: int = 0) -> None:
        self.sent.append((key, value))
        self._reports.append(on_delivery)

    def flush(self, seconds: float) -> int:
        for report in self._reports:
            report(None, None)
        self._reports.clear()
        return 0


def test_messages_of_a_key_with_a_large_one_all_take_its_way_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """G4: large messages are compressed otherwise, and no message of their key passes them."""
    monkeypatch.setattr(log_producer, "Producer", Delivering)
    large, small = b"l" * (LARGE_BYTES + 1), b"s"
    producer = LogProducer(Settings())
    batch = [("a", b"1"), ("b", b"2"), ("a", large), ("b", b"3"), ("a", b"4")]
    producer.send([Out("firehose_live", key, value) for key, value in batch])
    assert Delivering.made["zstd"].sent == [("b", b"2"), ("b", b"3")]
    assert Delivering.made["snappy"].sent == [("a", b"1"), ("a", large), ("a", b"4")]
    producer.send([Out("firehose_live", "a", small)])
    assert Delivering.made["zstd"].sent[-1] == ("a", small)
