"""A batch that PostgreSQL refuses: halving finds the messages at fault, inside one transaction and in bounded time.

Each part runs in a savepoint, so a thousand refused messages need no thousand commits. When the time is up, the rest of the
batch is returned to the source, which reads it again later, so other partitions are not delayed.
"""

import time
from collections.abc import Callable, Sequence

import psycopg
from confluent_kafka import Message

from connectors.kafka.log import Part
from connectors.kafka.producer import Out, dead_letter
from connectors.postgres.connection import REFUSALS
from flows.index.decode import received_at
from flows.index.stream_offsets import Spans
from schemas.reasons import DeadReason

HALVING_SECONDS = 1.0


def part_of(message: Message) -> Part:
    """Topic and partition."""
    return (message.topic() or "", message.partition() or 0)


def split(messages: Sequence[Message], spans: Spans, first: Callable[[str], bool]) -> list[tuple[list[Message], Spans]]:
    """The batch in two parts, first the topics for which `first` is true. No partition is in both."""
    halves: list[tuple[list[Message], Spans]] = []
    for wanted in (True, False):
        some = [message for message in messages if first(message.topic() or "") is wanted]
        if some:
            halves.append((some, {part: span for part, span in spans.items() if first(part[0]) is wanted}))
    return halves


def span_of(messages: Sequence[Message], spans: Spans) -> Spans:
    """The spans of the first messages of a batch."""
    moved: dict[Part, tuple[int, int]] = {}
    for message in messages:
        part = part_of(message)
        moved[part] = (spans[part][0], (message.offset() or 0) + 1)
    return moved


def by_halves(
    messages: list[Message],
    write: Callable[[list[Message]], None],
    prefix: str,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[int, list[Out]]:
    """Write the messages in order; returns how many are done, and dead letters for those that the database refuses.

    `write` must undo its own writes when it raises. Past the deadline it stops, but not before one message is done.
    """
    letters: list[Out] = []
    done = 0
    pending = [messages]
    while pending and not (done and clock() > deadline):
        some = pending.pop()
        try:
            write(some)
        except REFUSALS as err:
            if len(some) > 1:
                middle = len(some) // 2
                pending += [some[middle:], some[:middle]]
                continue
            letters.append(refusal(some[0], prefix, err))
        done += len(some)
    return done, letters


def refusal(message: Message, prefix: str, error: psycopg.Error) -> Out:
    """The dead letter of a message that the database refused."""
    topic, number = part_of(message)
    at = (number, message.offset() or 0)
    value = message.value() or b""
    reason, received = DeadReason.REFUSED_BY_DATABASE, received_at(message)
    return dead_letter(topic.removeprefix(prefix), reason, str(error), value, at=at, received=received)
