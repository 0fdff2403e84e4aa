"""A batch that PostgreSQL refuses: the messages at fault are found by halving, inside one transaction and in bounded time.

A refused half is undone by a savepoint, so that a thousand refused messages cost no thousand commits. After the time that a
sift may take, what is left is given back: the source reads it again, and other partitions have their turn.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import psycopg
from confluent_kafka import Message

from connectors.kafka.log import Part
from connectors.kafka.producer import Out, dead_letter
from connectors.postgres.connection import REFUSALS
from schemas.reasons import DeadReason

SIFT_SECONDS = 1.0
Spans = dict[Part, tuple[int, int]]


def part_of(message: Message) -> Part:
    """Topic and partition."""
    return (message.topic() or "", message.partition() or 0)


def split(
    messages: Sequence[Message], spans: Mapping[Part, tuple[int, int]], first: Callable[[str], bool]
) -> list[tuple[list[Message], Spans]]:
    """The messages of the topics that come first, and the others; no partition is in both."""
    halves = []
    for wanted in (True, False):
        some = [message for message in messages if first(message.topic() or "") is wanted]
        if some:
            halves.append((some, {part: span for part, span in spans.items() if first(part[0]) is wanted}))
    return halves


def span_of(messages: Sequence[Message], spans: Mapping[Part, tuple[int, int]]) -> Spans:
    """What the first messages of a batch move, from where its spans begin."""
    moved: Spans = {}
    for message in messages:
        part = part_of(message)
        moved[part] = (spans[part][0], (message.offset() or 0) + 1)
    return moved


def sift(
    messages: list[Message],
    write: Callable[[list[Message]], None],
    prefix: str,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[int, list[Out]]:
    """How many of the first messages are done with, and dead letters of those refused. `write` undoes itself where it raises.

    Goes on behind the deadline until something is done.
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
    """The dead letter of a message that the database refuses."""
    topic, number = part_of(message)
    at = (number, message.offset() or 0)
    value = message.value() or b""
    return dead_letter(topic.removeprefix(prefix), DeadReason.REFUSED_BY_DATABASE, str(error), value, at=at)
