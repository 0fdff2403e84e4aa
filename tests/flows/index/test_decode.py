"""Messages of the log as events: what has no row is a dead letter."""

from __future__ import annotations

from typing import Any

import pytest

from flows.index.decode import Batch, decode
from schemas import wire

TIME = "2026-01-01T00:00:00.000Z"


class Message:
    """A message of librdkafka."""

    def __init__(self, topic: str, event: Any) -> None:
        self._topic, self._value = topic, wire.encode(event)

    def topic(self) -> str:
        return self._topic

    def value(self) -> bytes:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_800_000_000_000

    def offset(self) -> int:
        return 7

    def partition(self) -> int:
        return 3


def create(rev: str) -> Message:
    event = wire.CreateEvent(
        did="did:plc:a", attempt=1, rev=rev, collection="a.b.c", rkey="x", cid="c", time=TIME, commit="c"
    )
    return Message("firehose_backfill", event)


def commit(rev: str) -> Message:
    event = wire.CommitEvent(
        seq=1, time=TIME, did="did:plc:a", rev=rev, commit="c", commit_block="oA", data="r", prev_data="q", ops=[]
    )
    return Message("firehose_live", event)


@pytest.mark.parametrize("make", [create, commit])
def test_a_rev_that_is_no_tid_is_a_dead_letter(make: Any) -> None:
    """G7: the table stores revs as numbers; the rest of the batch is decoded."""
    messages: Any = [make("3l22222222222"), make("yesterday"), make("")]
    decoded = decode(Batch(messages, {}))
    assert [queued.event.rev for queued in decoded.queues["did:plc:a"]] == ["3l22222222222"]
    letters = [wire.decode_dead_letter(letter.value) for letter in decoded.letters]
    assert [(letter.reason, letter.partition, letter.offset) for letter in letters] == [("undecodable", 3, 7)] * 2
    assert "not a TID: 'yesterday'" in letters[0].error
