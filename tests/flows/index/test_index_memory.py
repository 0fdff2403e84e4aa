"""The index as a process behind large messages that compress to nothing: a fetch of the log is bounded in bytes of memory too."""

from __future__ import annotations

import msgspec
import psutil

from connectors.kafka.producer import LARGE_BYTES, Out
from schemas import wire
from tests.flows.index.test_index import CID, TIME, World, did, world
from tests.support.flow_process import wait_until

__all__ = ["world"]
MESSAGES = 40


def event(number: int, at: int, size: int) -> Out:
    body = msgspec.Raw(b'{"text":"' + b"\\u0001" * (size // 6) + b'"}')
    op = wire.Op(action="create", collection="a.b.c", rkey=f"r{at}", cid=CID, record=body)
    message = wire.CommitEvent(
        seq=at,
        time=TIME,
        did=did(number),
        rev="3l22222222222",
        commit=CID,
        commit_block="oA",
        data=CID,
        prev_data=CID,
        ops=[op],
    )
    return Out("firehose_live", did(number), wire.encode(message))


def test_large_messages_of_one_repeated_character_take_no_more_memory_than_others(world: World) -> None:
    """H2: 40 messages of 12 MB, which a commit of 2 MB of control characters makes. With zstd for all: 670 MB."""
    for at in range(MESSAGES):
        world.producer.send([event(at % 7, at, 12_000_000)])
    index = world.index()
    peak = 0

    def settled() -> bool:
        nonlocal peak
        peak = max(peak, psutil.Process(index.process.pid).memory_info().rss >> 20)
        return world.settled("firehose_live") >= MESSAGES

    wait_until(settled)
    assert index.terminate() == 0
    assert peak < 400


def test_messages_of_one_key_stay_in_order_beside_a_large_one(world: World) -> None:
    """G4: what is compressed otherwise takes another way, with all messages of its key in the batch."""
    sizes = (10, LARGE_BYTES * 2, 10, 10, LARGE_BYTES * 2, 10)
    batch = [event(1, at, size) for at, size in enumerate(sizes)]
    places = world.producer.send(batch, range(len(batch)))
    assert len({place.partition for place in places.values()}) == 1
    offsets = [places[at].offset for at in range(len(batch))]
    assert offsets == sorted(offsets)
