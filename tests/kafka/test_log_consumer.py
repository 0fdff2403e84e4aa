"""Members of a group on a real broker: what a rebalance must not take away."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.consumer import CHUNK_MESSAGES, GATHER_SECONDS, QUEUED_BYTES, GroupConsumer
from connectors.kafka.producer import LogProducer, Out
from schemas.settings import Settings, load
from tests.support.flow_process import create_topics, wait_until

TOPIC = "repo_backfill"


def test_a_partition_revoked_while_paused_is_read_when_assigned_again(log: str) -> None:
    """G6, B8: a worker without room pauses; the partition went to another worker and came back, still paused (chaos, seed 25)."""
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, 2)
    settings = load(kafka_bootstrap=log, database="postgresql://nobody/none", kafka_topic_prefix=prefix)
    mine, other = GroupConsumer(settings, "backfill", [TOPIC]), GroupConsumer(settings, "backfill", [TOPIC])

    def until(what: Callable[[], bool], *members: GroupConsumer) -> None:
        wait_until(lambda: [member.poll(10, 0.05) for member in members] and what())

    until(lambda: len(mine.assigned) == 2, mine)
    mine.pause(mine.assigned)
    until(lambda: len(mine.assigned) == len(other.assigned) == 1, mine, other)
    mine.resume(mine.assigned)
    other.close()
    until(lambda: len(mine.assigned) == 2, mine)
    LogProducer(settings).send([Out(TOPIC, f"did:plc:{number}", b"x") for number in range(40)])
    read: set[tuple[int | None, int | None]] = set()  # twice, if the group has to gather anew

    def all_read() -> bool:
        read.update((message.partition(), message.offset()) for message in mine.poll(10, 0.1))
        return len(read) == 40

    wait_until(all_read, what=lambda: f"{len(read)}, only of partitions { {part for part, _ in read} }")
    assert {part for part, _ in read} == {0, 1}
    mine.close()


class _Message:
    def __init__(self, part: int) -> None:
        self.part = part

    def error(self) -> None:
        return None

    def value(self) -> bytes:
        return b"x"


class _Rebalancing:
    """A consumer whose second call serves a rebalance: partition 0 goes, partition 1 stays."""

    def __init__(self, member: GroupConsumer) -> None:
        self.member = member
        self.calls = 0

    def consume(self, limit: int, _seconds: float) -> list[_Message]:
        self.calls += 1
        if limit == 1 or self.calls == 2:
            return [_Message(0)] * limit
        if self.calls == 3:
            self.member._on_revoke(self, [TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)])  # type: ignore[arg-type]
            self.member._on_assign(self, [TopicPartition(TOPIC, 1)])  # type: ignore[arg-type]
            return [_Message(1)]
        return []

    def unassign(self) -> None:
        pass

    def assign(self, _: Any) -> None:
        pass

    resume = assign


def test_what_was_read_before_a_rebalance_of_the_same_poll_is_dropped() -> None:
    """G2: else the member writes a partition that is another's by now, and one of the two ends with PartitionLost."""
    member = GroupConsumer(Settings(), "index", [TOPIC])
    member._consumer = _Rebalancing(member)  # type: ignore[assignment]
    assert [message.part for message in member.poll(2 * CHUNK_MESSAGES)] == [1]  # type: ignore[attr-defined]
    assert member.assigned == {(TOPIC, 1)}


class _Quiet:
    """One message, then none. `asked`: (limit, seconds) of each call."""

    def __init__(self, messages: int) -> None:
        self.left = [_Message(0)] * messages
        self.asked: list[tuple[int, float]] = []

    def consume(self, limit: int, seconds: float) -> list[_Message]:
        self.asked.append((limit, seconds))
        taken, self.left = self.left[:limit], self.left[limit:]
        return taken


def test_a_poll_waits_for_one_message_and_then_a_moment_for_more() -> None:
    """S5: librdkafka returns when it has as many as it was asked for, or at the end of the wait."""
    member = GroupConsumer(Settings(), "index", [TOPIC])
    member._consumer = quiet = _Quiet(0)  # type: ignore[assignment]
    assert member.poll(500) == []
    ((limit, seconds),) = quiet.asked
    assert limit == 1
    assert seconds >= 0.1  # a shorter one would poll more often at rest
    member._consumer = quiet = _Quiet(3)  # type: ignore[assignment]
    assert len(member.poll(500)) == 3
    assert [limit for limit, _ in quiet.asked] == [1, CHUNK_MESSAGES]
    assert quiet.asked[1][1] <= GATHER_SECONDS


def test_little_is_read_ahead_of_a_live_event(log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: one queue holds all topics; a live event waits for the backfill's messages that librdkafka read before it."""
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, 1)
    settings = load(kafka_bootstrap=log, database="postgresql://nobody/none", kafka_topic_prefix=prefix)
    bodies = (secrets.token_bytes(20_000) for _ in range(1000))  # do not compress
    LogProducer(settings).send([Out(TOPIC, f"did:plc:{number}", body) for number, body in enumerate(bodies)])
    received: list[int] = []

    def statistics(text: str) -> None:
        received.append(json.loads(text)["rxmsg_bytes"])

    plain = broker.options
    counted = {"statistics.interval.ms": 100, "stats_cb": statistics}
    monkeypatch.setattr(broker, "options", lambda settings, use: plain(settings, use) | counted)
    member = GroupConsumer(settings, "backfill", [TOPIC])
    try:
        wait_until(lambda: member.poll(1), 60)

        def read_ahead() -> bool:
            member._client().poll(0)  # takes a message, and runs the callback
            return bool(received) and received[-1] > QUEUED_BYTES / 2

        wait_until(read_ahead)
        for _ in range(20):
            time.sleep(0.1)
            member._client().poll(0)
        assert QUEUED_BYTES / 2 < received[-1] < QUEUED_BYTES * 2
    finally:
        member.close()
