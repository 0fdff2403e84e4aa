"""The topic of marks (`steps/sequence.py`) in the broker: its newest mark, and the one from which a cursor is read.

Marks ascend in every respect, so a cursor is found by bisection: some twenty reads of one message. Raises LogUnavailable.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka.log import LogUnavailable, watermarks
from connectors.kafka.producer import LogProducer, Out
from connectors.runtime import watchdog
from schemas import wire
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE, FIREHOSE_SEQUENCE
from steps.sequence import LogMark, counts

READ_SECONDS = 10.0
"""Time limit of one read."""
POLL_SECONDS = 0.5
READ_BACK = 64
"""The newest mark is looked for in the last READ_BACK messages first; the ones after it lost a race."""


class StoredMark(NamedTuple):
    """A mark that counts, and its offset."""

    offset: int
    mark: LogMark


def parse(message: Message) -> StoredMark | None:
    """The mark of a message; None if it does not count."""
    try:
        found = wire.decode_mark(message.value() or b"")
    except msgspec.DecodeError:
        return None
    offset = message.offset() or 0
    return (
        StoredMark(offset, LogMark(found.base, found.time, tuple(found.ends))) if counts(offset, found.after) else None
    )


def write(producer: LogProducer, after: int, mark: LogMark) -> None:
    """Write a mark; whether it counts is known when it is read. Raises LogUnavailable."""
    value = wire.SequenceMark(after=after, base=mark.base, time=mark.time, ends=list(mark.ends))
    producer.send([Out(FIREHOSE_SEQUENCE, "", wire.encode(value))])


def log_range(settings: Settings) -> tuple[list[int], list[int]]:
    """First and next offsets of the partitions of `firehose_live`."""
    marks = watermarks(settings, [FIREHOSE_LIVE])
    pairs = [marks[part] for part in sorted(marks)]
    return [low for low, _ in pairs], [high for _, high in pairs]


class Marks:
    """The marks that the topic had when this was made. Used in one thread; close it."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topic(FIREHOSE_SEQUENCE)
        ((self.start, self.end),) = watermarks(settings, [FIREHOSE_SEQUENCE]).values()
        self._consumer: Consumer = broker.reader(
            settings,
            "serve",
            use="marks",
            auto_offset_reset="earliest",
            fetch_message_max_bytes=64 * 1024,
            fetch_wait_max_ms=10,
        )

    def at(self, offset: int) -> StoredMark | None:
        """The first mark that counts at this offset or after it."""
        return next(self._from(offset), None)

    def _from(self, offset: int) -> Iterator[StoredMark]:
        """The marks that count from this offset on."""
        deadline = time.monotonic() + READ_SECONDS
        self._consumer.assign([TopicPartition(self._topic, 0, offset)])
        while offset < self.end:
            first = self._consumer.consume(1, POLL_SECONDS)
            for message in chain(first, self._consumer.consume(READ_BACK, 0) if first else ()):
                if message.error() is None:
                    found, offset = parse(message), (message.offset() or 0) + 1
                    if found is not None:
                        yield found
            watchdog.mark()
            if time.monotonic() > deadline:
                raise LogUnavailable(f"{self._topic}: no answer in {READ_SECONDS:.0f} s; is the broker up?")

    def newest(self) -> StoredMark | None:
        """The newest mark that counts."""
        back, found = READ_BACK, None
        while found is None and self.start < self.end:
            first = max(self.start, self.end - back)
            for one in self._from(first):
                found = one
            if first == self.start:
                break
            back *= 16
        return found

    def last(self, is_before: Callable[[LogMark], bool]) -> StoredMark | None:
        """The last mark for which `is_before` holds; it holds for all before that one. None if there is none."""
        low, high, best = self.start, self.end, None
        while low < high:
            middle = (low + high) // 2
            found = self.at(middle)
            if found is not None and is_before(found.mark):
                best, low = found, found.offset + 1
            else:
                high = middle
        return best

    def floor(self, starts: list[int]) -> StoredMark | None:
        """The first mark from which the log still has every message. `starts`: its first offsets."""

        def lost(mark: LogMark) -> bool:
            return any(end < start for end, start in zip(mark.ends, starts, strict=True))

        before = self.last(lost)
        return self.at(self.start if before is None else before.offset + 1)

    def close(self) -> None:
        """Close the client."""
        broker.close(self._consumer)


@contextmanager
def opened(settings: Settings) -> Iterator[Marks]:
    """The marks as they are now."""
    found = Marks(settings)
    try:
        yield found
    except KafkaException as err:
        raise LogUnavailable(f"{settings.kafka_bootstrap}: {err}") from err
    finally:
        found.close()
