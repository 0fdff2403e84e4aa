"""subscribeLabels: one labeler's labels in the order of its seq, from a log of many partitions; cursors, faults of clients."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.log import LogUnavailable
from connectors.kafka.producer import LogProducer, Out
from flows.labels.encode import label_value
from protocol.event_stream import Labels, decode
from protocol.labels import Label, parse_label, subject_key
from schemas import wire
from schemas.settings import Settings
from schemas.topics import LABEL_LIVE
from serve.xrpc import label_merge, label_reader, label_stream
from serve.xrpc.label_merge import LabelMerge
from tests.serve.conftest import Reads
from tests.support.flow_process import create_topics

ONE, OTHER = "wss://one.example", "wss://other.example"
PARTITIONS = 4


def event(seq: int, at: int = 0, labeler: str = ONE) -> wire.LabelEvent:
    return wire.LabelEvent(
        seq=seq,
        src="did:plc:labeler",
        uri=f"did:plc:{at:a>24}",
        val=f"v{seq}",
        cts="2026-01-01T00:00:00.000Z",
        relay=labeler,
    )


class Served:
    """A served log of labels."""

    def __init__(self, settings: Settings, reads: Reads) -> None:
        self.reads = reads
        self.settings = settings
        self._producer = LogProducer(settings)

    def write(self, *events: wire.LabelEvent) -> None:
        """Append to the log."""
        self._producer.send([Out(LABEL_LIVE, subject_key(one.uri), wire.encode(one)) for one in events])

    def position(self, seq: int, labeler: str = ONE) -> None:
        """What the labels flow has stored: all up to this seq is in the log."""
        self.reads.sql(
            "insert into sluice.cursor (flow, upstream, position) values ('labels', %s, %s)"
            " on conflict (flow, upstream, shares, share) do update set position = excluded.position",
            *(labeler, str(seq)),
        )

    async def read(self, query: str, count: int, *, more: Callable[[], None] = lambda: None) -> list[Any]:
        """Connect, then call `more`; the decoded frames until `count` labels or the end."""
        url = f"http://127.0.0.1:{self.reads.port}/xrpc/com.atproto.label.subscribeLabels?{query}"
        frames: list[Any] = []
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            await asyncio.to_thread(more)
            while sum(len(one.labels) for one in frames if isinstance(one, Labels)) < count:
                message = await socket.receive(30)
                if message.type is not aiohttp.WSMsgType.BINARY:
                    break
                frames.append(decode(message.data))
        return frames

    def labels(self, query: str, count: int, **more: Any) -> list[tuple[int, list[str]]]:
        """(seq, values) of each frame."""
        return [
            (one.seq, sorted(label["val"] for label in one.labels))
            for one in asyncio.run(self.read(query, count, **more))
        ]


@pytest.fixture
def served(log: str, settings: Settings, reads_of: Callable[[Settings], Reads]) -> Served:
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, PARTITIONS)
    changes = {
        "kafka_bootstrap": log,
        "kafka_topic_prefix": prefix,
        "kafka_partitions": PARTITIONS,
        "labelers": [ONE, OTHER],
    }
    whole = settings.model_copy(update=changes)
    return Served(whole, reads_of(whole))


def test_labels_come_in_the_order_of_their_seq_whatever_partition_they_are_in(served: Served) -> None:
    served.write(*(event(1 + at // 2, at) for at in range(400)), *(event(7, at, OTHER) for at in range(20)))
    served.position(200)
    wanted = [(seq, [f"v{seq}"] * 2) for seq in range(1, 201)]
    assert served.labels(f"labeler={ONE}&cursor=0", 400) == wanted
    assert served.labels(f"labeler={ONE}&cursor=150", 100) == wanted[150:]
    served.position(7, OTHER)
    assert served.labels(f"labeler={OTHER}&cursor=0", 20) == [(7, ["v7"] * 20)]


def test_a_label_is_sent_when_all_before_it_are_in_the_log(served: Served) -> None:
    """Seq 3 is in the log before 2, and both before the flow has stored that 1 to 3 are."""
    served.write(event(1, 1))
    served.position(1)

    def more() -> None:
        served.write(event(3, 3))
        served.write(event(2, 2))
        served.position(3)

    assert served.labels(f"labeler={ONE}&cursor=0", 3, more=more) == [(1, ["v1"]), (2, ["v2"]), (3, ["v3"])]


def test_without_a_cursor_the_stream_begins_now(served: Served) -> None:
    served.write(*(event(at, at) for at in range(1, 30)))
    served.position(29)

    def more() -> None:
        served.write(event(30, 1), event(31, 2))
        served.position(31)

    assert served.labels(f"labeler={ONE}", 2, more=more) == [(30, ["v30"]), (31, ["v31"])]


def test_a_cursor_is_found_in_a_long_log(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_reader, "WINDOW", 20)
    served.write(*(event(at, at * 7 % 31) for at in range(1, 1501)))
    served.position(1500)
    for cursor in (0, 1, 700, 1490):
        found = served.labels(f"labeler={ONE}&cursor={cursor}", 1500 - cursor)
        assert found == [(seq, [f"v{seq}"]) for seq in range(cursor + 1, 1501)]


def test_a_cursor_is_found_while_retention_removes_labels(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three quarters of each partition are removed when the search has begun."""
    monkeypatch.setattr(label_reader, "WINDOW", 20)
    served.write(*(event(at, at * 7 % 31) for at in range(1, 1501)))
    served.position(1500)
    marks, admin = label_reader.watermarks, AdminClient({"bootstrap.servers": served.settings.kafka_bootstrap})

    def removed(settings: Settings, topics: list[str]) -> Any:
        found = marks(settings, topics)
        parts = [TopicPartition(*key, high * 3 // 4) for key, (low, high) in found.items() if not low]
        for future in admin.delete_records(parts).values() if parts else ():
            future.result(60)
        return found

    monkeypatch.setattr(label_reader, "watermarks", removed)
    assert served.labels(f"labeler={ONE}&cursor=1490", 10) == [(seq, [f"v{seq}"]) for seq in range(1491, 1501)]


def test_errors_are_those_of_the_lexicon(served: Served) -> None:
    served.position(5)
    (error,) = asyncio.run(served.read(f"labeler={ONE}&cursor=6", 1))
    assert "FutureCursor" in repr(error)
    for query in (
        {},
        {"labeler": "wss://unknown.example"},
        {"labeler": ONE, "cursor": "x"},
        {"labeler": ONE, "cursor": "1" * 19},
    ):
        assert served.reads.error("label.subscribeLabels", **query) == (400, "InvalidRequest")


def test_clients_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_stream, "CLIENTS", 1)
    served.position(1)
    served.write(event(1, 1))

    def second() -> None:
        assert served.reads.error("label.subscribeLabels", labeler=ONE) == (503, "NotEnoughResources")
        served.write(event(2, 1))
        served.position(2)

    assert served.labels(f"labeler={ONE}&cursor=1", 1, more=second) == [(2, ["v2"])]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=40), st.data())
def test_any_interleaving_gives_every_label_once_in_order(written: list[tuple[int, int]], data: Any) -> None:
    """Partition and seq step of each label; then reads of the partitions in any order, and any position."""
    log: dict[int, list[wire.LabelEvent]] = {part: [] for part in range(4)}
    seq = 0
    for part, step in written:
        seq += step - 1 if seq else step
        log[part].append(event(seq))
    merge, got = LabelMerge(0, dict.fromkeys(log, 0)), []
    ends = {part: len(events) for part, events in log.items()}
    unread = [(part, offset) for part, events in log.items() for offset in range(len(events))]
    rounds = data.draw(st.permutations([part for part, _ in unread]))
    offsets, position = dict.fromkeys(log, 0), 0
    for part in [*rounds, None]:
        position = max(position, data.draw(st.integers(0, seq))) if part is not None else seq
        if part is not None:
            merge.take(part, offsets[part], log[part][offsets[part]])
            offsets[part] += 1
        while (frame := merge.take_frame(ends, position)) is not None:
            assert frame[0] <= position
            got.append(frame)
    assert [one for one, _ in got] == sorted({one for one, _ in got})
    every = sorted(label.seq for events in log.values() for label in events)
    assert sorted(label.seq for _, labels in got for label in labels) == every
    assert all(label.seq == one for one, labels in got for label in labels)


def test_a_late_label_has_the_last_seq_and_buffers_are_bounded() -> None:
    merge = LabelMerge(0, {0: 0})
    for offset, seq in enumerate((5, 6, 2)):
        merge.take(0, offset, event(seq))
    frames = [merge.take_frame({0: 3}, 6) for _ in range(4)]
    assert [frame and frame[0] for frame in frames] == [5, 6, 6, None]
    for offset in range(3, 3 + label_merge.BUFFERED):
        merge.take(0, offset, event(7))
    assert merge.full() == {0}


def test_a_frame_s_labels_are_those_that_the_labels_flow_reads() -> None:
    label = parse_label(
        {
            "ver": 1,
            "src": "did:plc:x",
            "uri": "did:plc:y",
            "val": "spam",
            "neg": True,
            "cts": "2026-01-01T00:00:00.000Z",
            "sig": b"\0sig",
        }
    )
    assert isinstance(label, Label)
    stored = wire.decode_label(label_value(label, 5, ONE))
    assert parse_label(label_reader.label_map(stored)) == label


def test_a_stream_whose_log_does_not_answer_is_closed_to_be_tried_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_: object) -> list[bytes]:
        raise LogUnavailable("no answer")

    monkeypatch.setattr(label_reader.LabelReader, "poll", silent)

    async def ended() -> aiohttp.WSMessage:
        url = f"http://127.0.0.1:{served.reads.port}/xrpc/com.atproto.label.subscribeLabels?labeler={ONE}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            return await socket.receive(60)

    message = asyncio.run(ended())
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, aiohttp.WSCloseCode.TRY_AGAIN_LATER)
