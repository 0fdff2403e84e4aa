"""One labeler's labels from `label_live`, for one client: `LabelReader`. Blocking, for one thread at a time.

The mirror's position in the labeler's stream (`sluice.cursor`) says that every label up to it is in the log. So each round reads
the position, then the ends of the partitions, then the partitions up to there (`label_merge.py`). A cursor is found by bisection in
each partition: the first offset from which a window of messages has a later seq.
"""

import time
from collections.abc import Iterator
from typing import Any

import cbrrr
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable, watermarks
from connectors.postgres.pooled_calls import PooledCalls
from protocol.encoding.unpadded_base64 import from_base64
from schemas import wire
from schemas.sql import queries
from schemas.topics import LABEL_LIVE
from serve.xrpc.label_merge import LabelMerge

FLOW = "labels"
ROUND_SECONDS = 0.5
"""Between two reads of the position, and the longest wait of a read."""
READ_SECONDS = 10.0
WINDOW = 500
"""Messages that a step of the bisection reads; a shorter partition is read from its start."""
CONSUME_MESSAGES = 500
QUEUE_KIB = 4096
FRAMES = 100
"""Frames of one round."""
_HEADER = cbrrr.encode_dag_cbor({"op": 1, "t": "#labels"})
_INFO_HEADER = cbrrr.encode_dag_cbor({"op": 1, "t": "#info"})
_ERROR_HEADER = cbrrr.encode_dag_cbor({"op": -1})


class FutureCursor(Exception):
    """The cursor is above the mirror's position."""


class LabelReader:
    """`labeler`: its URL. `cursor`: the last seq that the client has; None: from now on. The constructor does not connect."""

    def __init__(self, calls: PooledCalls, labeler: str, cursor: int | None) -> None:
        self._calls = calls
        self._labeler = labeler
        self._cursor = cursor
        self._topic = calls.settings.topic(LABEL_LIVE)
        self._position = 0
        self._ends: dict[int, int] = {}
        self._paused: set[int] = set()
        self._merge = LabelMerge(0, {})
        self._read_at = 0.0
        self._consumer = self._client()

    def _client(self) -> Consumer:
        return broker.reader(
            self._calls.settings,
            "serve",
            use="labels",
            auto_offset_reset="earliest",
            queued_max_messages_kbytes=QUEUE_KIB,
            fetch_message_max_bytes=64 * 1024,
        )

    def open(self) -> list[bytes]:
        """Find the start; returns the first frames. Raises FutureCursor and LogUnavailable."""
        self._position = self._read_position()
        marks = self._marks()
        if self._cursor is None:
            return self._begin(self._position, {part: high for part, (_, high) in marks.items()})
        if self._cursor > self._position:
            raise FutureCursor
        probe = self._client()  # another one: messages of a former assignment may still come
        try:
            found = {part: self._first_after(probe, self._cursor, part, *marks[part]) for part in marks}
        finally:
            broker.close(probe)
        lost = any(missing for _, missing in found.values())
        info: dict[str, Any] = {"name": "OutdatedCursor", "message": "labels before the log begins are not sent"}
        self._begin(self._cursor, {part: offset for part, (offset, _) in found.items()})
        return [_INFO_HEADER + cbrrr.encode_dag_cbor(info)] if lost else []

    def _marks(self) -> dict[int, tuple[int, int]]:
        """Partition → first offset and end. Raises LogUnavailable."""
        return {part: marks for (_, part), marks in watermarks(self._calls.settings, [LABEL_LIVE]).items()}

    def poll(self) -> list[bytes]:
        """The next frames; waits at most ROUND_SECONDS for some. Raises LogUnavailable."""
        try:
            self._look()
            deadline = time.monotonic() + ROUND_SECONDS
            while not (frames := list(self._frames())) and (left := deadline - time.monotonic()) > 0:
                self._consume(left)
        except KafkaException as err:
            raise LogUnavailable(f"{self._calls.settings.kafka_bootstrap}: {err}") from err
        return frames

    def close(self) -> None:
        """Close the client."""
        broker.close(self._consumer)

    def _begin(self, after: int, starts: dict[int, int]) -> list[bytes]:
        self._merge, self._ends, self._position = (
            LabelMerge(after, starts),
            starts,
            -1,
        )  # the ends are read with the position
        self._consumer.assign([TopicPartition(self._topic, part, offset) for part, offset in starts.items()])
        return []

    def _look(self) -> None:
        """Read the position, and then the ends."""
        now = time.monotonic()
        if now - self._read_at < ROUND_SECONDS:
            return
        self._read_at, position = now, self._read_position()
        if position != self._position:
            self._position = position
            for part in self._ends:
                self._ends[part] = self._consumer.get_watermark_offsets(
                    TopicPartition(self._topic, part), timeout=READ_SECONDS
                )[1]

    def _read_position(self) -> int:
        """The mirror's position in the labeler's stream."""
        rows = self._calls.rows(queries("cursor")["find"], {"flow": FLOW, "upstream": self._labeler})
        return int(rows[0]["position"]) if rows and rows[0]["position"].isdigit() else 0

    def _frames(self) -> Iterator[bytes]:
        for _ in range(FRAMES):
            found = self._merge.take_frame(self._ends, self._position)
            if found is None:
                return
            yield _HEADER + cbrrr.encode_dag_cbor({"seq": found[0], "labels": [label_map(one) for one in found[1]]})

    def _consume(self, seconds: float) -> None:
        for message in self._consumer.consume(CONSUME_MESSAGES, seconds):
            if _usable(message):
                self._merge.take(message.partition() or 0, message.offset() or 0, self._own(message))
        full = self._merge.full()
        for parts, change in (
            (full - self._paused, self._consumer.pause),
            (self._paused - full, self._consumer.resume),
        ):
            if parts:
                change([TopicPartition(self._topic, part) for part in parts])
        self._paused = full

    def _own(self, message: Message) -> wire.LabelEvent | None:
        """The label of a message, if it is of this labeler."""
        label = wire.decode_label(message.value() or b"")
        return label if label.relay == self._labeler else None

    def _first_after(self, probe: Consumer, cursor: int, part: int, low: int, high: int) -> tuple[int, bool]:
        """Where to read a partition from, and whether labels before it are gone from the log."""
        if high - low <= WINDOW:
            return low, low > 0 and self._highest(probe, part, low, high) > cursor
        first, last = low, high
        while last - first > WINDOW:
            middle = (first + last) // 2
            if self._highest(probe, part, middle, high) > cursor:
                last = middle
            else:
                first = middle
        return first, low > 0 and first == low

    def _highest(self, probe: Consumer, part: int, offset: int, end: int) -> int:
        """The highest seq of this labeler in the window from an offset on; of none, the highest of all."""
        probe.assign([TopicPartition(self._topic, part, offset)])
        deadline, highest, until = time.monotonic() + READ_SECONDS, -1, min(offset + WINDOW, end)
        while offset < until:
            begin = offset
            for message in probe.consume(until - offset, ROUND_SECONDS):
                if _usable(message) and (message.partition(), message.offset()) == (part, offset):
                    offset += 1
                    label = self._own(message)
                    highest = max(highest, label.seq if label is not None else -1)
            if offset == begin and (low := self._marks()[part][0]) > offset:  # retention has removed it
                return self._highest(probe, part, low, end)
            if time.monotonic() > deadline:
                raise LogUnavailable(f"{self._topic}: no answer in {READ_SECONDS:.0f} s; is the broker up?")
        return highest if highest >= 0 else 1 << 62


def label_map(label: wire.LabelEvent) -> dict[str, Any]:
    """A label as its frame has it."""
    fields = {name: getattr(label, name) for name in ("src", "uri", "cid", "val", "cts", "exp")}
    found: dict[str, Any] = {"ver": 1, **{name: value for name, value in fields.items() if value}}
    if label.neg:
        found["neg"] = True
    if label.sig:
        found["sig"] = from_base64(label.sig)
    return found


def error_frame(name: str, message: str) -> bytes:
    """The last frame of a stream."""
    return _ERROR_HEADER + cbrrr.encode_dag_cbor({"error": name, "message": message})


def _usable(message: Message) -> bool:
    """Whether this is a message; an error that a retry may fix is not one. Raises LogUnavailable."""
    error = message.error()
    if error is not None and not broker.transient(error):
        raise LogUnavailable(f"{message.topic()}: {error.str()}")
    return error is None
