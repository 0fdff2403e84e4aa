"""Messages of `firehose_live` in the order of their numbers: `LogReader`, for the live stream and for every replay.

It reads the topic of marks and all partitions from one mark on, and returns whole blocks. What is read ahead is bounded:
partitions that have what the next block needs are paused while BUFFER_BYTES are held.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, zip_longest
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE, FIREHOSE_SEQUENCE, MAX_MESSAGE_BYTES
from serve.stream.marks import StoredMark, parse
from steps.sequence import SEQS, Block

BUFFER_BYTES = 16 * 1024 * 1024
"""Messages read ahead; and with it the largest block, since its writer has held it as well."""
QUEUE_BYTES = 16 * 1024 * 1024
"""Messages in the client's own queue."""
CONSUME_MESSAGES = 500
BLOCKS_AHEAD = 500


class Numbered(NamedTuple):
    """A message with the number of its first event, and its time (Unix microseconds)."""

    seq: int
    time: int
    value: bytes


class OutOfRange(Exception):
    """The log no longer has the next message: retention removed it, or the log was replaced."""


class LogReader:
    """Reads from a mark on. Used in one thread; close it."""

    def __init__(self, settings: Settings, start: StoredMark, use: str, starts: Iterable[int] = ()) -> None:
        """`use`: for the client id. `starts`: first offsets of the log; messages before them are left out."""
        self._bootstrap = settings.kafka_bootstrap
        self._live, self._sequence = settings.topic(FIREHOSE_LIVE), settings.topic(FIREHOSE_SEQUENCE)
        self.newest = start
        """The last mark that was returned."""
        self.sequence_next = start.offset + 1
        """Next offset of the topic of marks."""
        self.seen = [max(pair) for pair in zip_longest(start.mark.ends, starts, fillvalue=0)]
        """Next offset of each partition."""
        self._buffers: list[deque[tuple[int, bytes]]] = [deque() for _ in self.seen]
        self._held = 0
        self._blocks: deque[Block] = deque()
        self.last_read = start
        """The last mark that was read, whose messages may not all be read yet."""
        self._paused: set[int] = set()
        self._marks_paused = False
        self._consumer: Consumer = broker.reader(
            settings,
            "serve",
            use=use,
            auto_offset_reset="error",
            queued_max_messages_kbytes=QUEUE_BYTES // 1024,
            fetch_message_max_bytes=128 * 1024,
            message_max_bytes=MAX_MESSAGE_BYTES,
            receive_message_max_bytes=100 * 1024 * 1024,
            fetch_wait_max_ms=1000,
            fetch_queue_backoff_ms=100,
        )
        self._consumer.assign(
            [
                TopicPartition(self._sequence, 0, self.sequence_next),
                *(TopicPartition(self._live, part, offset) for part, offset in enumerate(self.seen)),
            ]
        )

    def read(self, seconds: float) -> list[Numbered]:
        """The messages of the blocks that are complete, in order; waits at most `seconds`. Raises LogUnavailable, OutOfRange."""
        try:
            first = self._consumer.consume(1, seconds)
            for message in chain(first, self._consumer.consume(CONSUME_MESSAGES, 0) if first else ()):
                self._take(message)
            found: list[Numbered] = []
            while self._blocks and self._has(self._blocks[0]) and len(found) < CONSUME_MESSAGES:
                found += self._numbered(self._blocks.popleft())
            self._bound()
        except KafkaException as err:
            raise LogUnavailable(f"{self._bootstrap}: {err}") from err
        return found

    def close(self) -> None:
        """Close the client."""
        broker.close(self._consumer)

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise OutOfRange(error.str())
            if not broker.transient(error):
                raise LogUnavailable(f"{message.topic()}: {error.str()}")
            return
        offset, part = message.offset() or 0, message.partition() or 0
        if offset < (self.sequence_next if message.topic() == self._sequence else self.seen[part]):
            return  # the client may deliver a message again after a pause
        if message.topic() == self._sequence:
            self.sequence_next = offset + 1
            stored = parse(message)
            if stored is not None:
                self._blocks.append(Block(self.last_read.mark, stored.mark, stored.offset))
                self.last_read = stored
            return
        value = message.value() or b""
        self.seen[part] = offset + 1
        self._buffers[part].append((offset, value))
        self._held += len(value)

    def _has(self, block: Block) -> bool:
        return not block.messages or all(there >= end for there, end in zip(self.seen, block.end.ends, strict=True))

    def _numbered(self, block: Block) -> Iterator[Numbered]:
        if block.end.base != block.start.base:
            raise OutOfRange("the log was replaced")
        before = 0  # messages of the block in earlier partitions
        for buffer, first, end in zip(self._buffers, block.start.ends, block.end.ends, strict=True):
            while buffer and buffer[0][0] < end:
                offset, value = buffer.popleft()
                self._held -= len(value)
                rank = before + offset - first
                yield Numbered(block.start.seq + SEQS * rank, block.first_time + rank, value)
            before += end - first
        self.newest = StoredMark(block.offset, block.end)

    def _bound(self) -> None:
        """Pause what would be read ahead too far, resume the rest."""
        full = self._held > BUFFER_BYTES
        needed = self._blocks[0].end.ends if self._blocks else ()
        wanted = {
            part for part, there in enumerate(self.seen) if full and not (part < len(needed) and there < needed[part])
        }
        for parts, change in (
            (wanted - self._paused, self._consumer.pause),
            (self._paused - wanted, self._consumer.resume),
        ):
            if parts:
                change([TopicPartition(self._live, part) for part in parts])
        self._paused = wanted
        marks_paused = len(self._blocks) > BLOCKS_AHEAD
        if marks_paused != self._marks_paused:
            change = self._consumer.pause if marks_paused else self._consumer.resume
            change([TopicPartition(self._sequence, 0)])
            self._marks_paused = marks_paused
