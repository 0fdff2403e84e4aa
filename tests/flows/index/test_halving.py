"""Batches that PostgreSQL refuses: what is found by its size, what by halving, and how long others wait."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE

from connectors.kafka.log import Part
from connectors.kafka.producer import Out
from flows.index import sink
from flows.index.decode import Batch, decode
from flows.index.halving import by_halves
from flows.index.sink import IndexWriter
from flows.index.store import IndexStore
from protocol.labels import MAX_KEY_BYTES
from schemas import wire
from schemas.settings import Settings
from steps.gate.model import Rules

LIVE, LABELS = ("firehose_live", 0), ("label_live", 0)
TIME = "2026-01-01T00:00:00.000Z"
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


@dataclass(frozen=True)
class Message:
    """What the writer asks of a message of the log."""

    part: Part
    at: int
    data: bytes

    def topic(self) -> str:
        return self.part[0]

    def partition(self) -> int:
        return self.part[1]

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes:
        return self.data

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_NOT_AVAILABLE, 0


class Letters:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, messages: Sequence[Out]) -> None:
        self.sent += [wire.decode_dead_letter(message.value) for message in messages]


class World:
    """The writer, and a source that reads a log of lists and goes back where the writer gives something back."""

    def __init__(self, database: str) -> None:
        self.settings = Settings(database=database)
        self.tables = IndexStore(self.settings, "cluster", None)
        self.letters = Letters()
        self.unread: dict[Part, int] = {}
        self.writer = IndexWriter(self.settings, self.tables, Rules(), self.letters, unread=self.unread)
        self.log: dict[Part, list[bytes]] = {LIVE: [], LABELS: []}
        self.tables.starts(dict.fromkeys(self.log, (0, 0)))
        self.next: dict[Part, int] = dict.fromkeys(self.log, 0)

    def poll(self, limit: int = 5000) -> bool:
        """One batch through the writer; False where there was none."""
        messages, spans = [], {}
        for part, values in self.log.items():
            begin = self.next[part]
            some = [Message(part, at, values[at]) for at in range(begin, min(len(values), begin + limit))]
            if some:
                messages += some
                spans[part] = (begin, begin + len(some))
        if not messages:
            return False
        self.next |= {part: end for part, (_, end) in spans.items()}
        self.writer.write(decode(Batch(messages, spans)))  # type: ignore[arg-type]  # as much of a Message as it asks
        self.next |= self.unread
        self.unread.clear()
        return True

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.settings.database, autocommit=True) as db:
            cursor = db.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def positions(self) -> dict[Part, int]:
        return {(topic, part): at for topic, part, at in self.sql("select topic, part, next from sluice.stream_offset")}


@pytest.fixture
def world(database: str) -> Iterator[World]:
    made = World(database)
    yield made
    made.tables.close()


def label(seq: int, val: str = "spam", uri: str = "") -> bytes:
    uri = uri or f"at://{DID}/app.bsky.feed.post/{seq}"
    return wire.encode(wire.LabelEvent(seq=seq, src=DID, uri=uri, val=val, cts=TIME, neg=False, relay="r"))


def account(number: int) -> bytes:
    did = f"did:plc:{number:024}"
    return wire.encode(wire.AccountEvent(seq=number, time=TIME, did=did, active=True, status=None, relay="r"))


def noise(size: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=size))  # does not compress


def test_labels_too_large_for_their_key_cost_no_transaction_and_delay_no_live_event(world: World) -> None:
    """H2, H3: 1,000 of them in the log, as an older release let them in. Before: 9 a second."""
    world.log[LABELS] = [label(at, uri=f"https://{noise(MAX_KEY_BYTES, at)}") for at in range(1000)]
    world.log[LABELS].append(label(1000))
    world.log[LIVE] = [account(1)]
    begin = time.monotonic()
    assert world.poll()
    assert time.monotonic() - begin < 20  # then it was 111
    assert world.sql("select did from sluice.repo") == [(f"did:plc:{1:024}",)]
    assert world.sql("select count(*) from sluice.label") == [(1,)]
    assert world.positions() == {LABELS: 1001, LIVE: 1}
    assert {letter.reason for letter in world.letters.sent} == {"refused_by_database"}
    assert len(world.letters.sent) == 1000
    assert "too large for an index" in world.letters.sent[0].error


def test_the_largest_key_that_passes_is_one_that_the_index_holds(world: World) -> None:
    """H3."""
    room = MAX_KEY_BYTES - len(DID) - len("spam") - len("https://")
    world.log[LABELS] = [label(1, uri=f"https://{noise(room, 1)}"), label(2, uri=f"https://{noise(room + 1, 1)}")]
    assert world.poll()
    assert world.sql("select seq from sluice.label") == [(1,)]
    assert len(world.letters.sent) == 1


POISON = "alter table sluice.label add constraint no_poison check (val <> 'poison')"


def test_messages_that_the_database_refuses_keep_no_live_event_waiting(world: World) -> None:
    """H3: refusals that no size predicts. Live events are written first, then halving has a second a batch."""
    world.sql(POISON)
    world.log[LABELS] = [label(at, "poison" if at % 2 else "good") for at in range(800)]
    waits = []
    batches = 0
    while True:
        world.log[LIVE].append(account(batches))
        begin = time.monotonic()
        more = world.poll(limit=500)
        assert world.sql("select count(*) from sluice.repo") == [(batches + 1,)], "the live event is in its table"
        waits.append(time.monotonic() - begin)
        batches += 1
        assert more
        if world.next[LABELS] == 800:
            break
    assert max(waits) < 20  # of 250 refusals in a batch it was 28
    assert world.sql("select count(*) from sluice.label") == [(400,)]
    assert sorted(letter.offset for letter in world.letters.sent) == list(range(1, 800, 2))
    assert world.positions() == {LABELS: 800, LIVE: batches}


def test_a_batch_that_takes_too_long_is_returned_from_where_it_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3: the stored positions are exactly there, and every message is handled once."""
    monkeypatch.setattr(sink, "HALVING_SECONDS", 0.0)
    world.sql(POISON)
    world.log[LABELS] = [label(at, "poison" if at % 3 == 0 else "good") for at in range(20)]
    given_back = 0
    while world.poll():
        assert world.positions()[LABELS] == world.next[LABELS]
        given_back += world.next[LABELS] < 20
    assert given_back > 3
    assert world.sql("select count(*) from sluice.label") == [(13,)]
    assert [letter.offset for letter in world.letters.sent] == list(range(0, 20, 3))


def test_a_poisonous_live_event_costs_only_itself_among_events_of_its_repo(world: World) -> None:
    """G4, G7: halves are written in the order of the log, each in its savepoint."""
    world.sql("alter table sluice.repo add constraint no_poison check (handle <> 'poison.test')")

    def handle(seq: int, name: str) -> bytes:
        moment = f"2026-01-01T00:00:{seq:02}.000Z"
        return wire.encode(wire.IdentityEvent(seq=seq, time=moment, did=DID, handle=name, relay="r"))

    world.log[LIVE] = [handle(at, "poison.test" if at == 5 else f"h{at}.test") for at in range(6)]
    world.log[LABELS] = [label(1)]
    assert world.poll()
    assert [letter.offset for letter in world.letters.sent] == [5]
    assert world.sql("select handle, account_seq from sluice.repo") == [("h4.test", 4)]
    assert world.sql("select count(*) from sluice.label") == [(1,)]


def test_halving_continues_until_one_message_is_done() -> None:
    """H3: also where the time is over before it begins, or nothing would ever end."""
    messages: list[Any] = [Message(LABELS, at, b"") for at in range(8)]

    def write(some: list[Any]) -> None:
        if any(message.at < 3 for message in some):
            raise psycopg.DataError("no")

    done, letters = by_halves(messages, write, "", deadline=0.0, clock=lambda: 1.0)
    assert (done, len(letters)) == (1, 1)
    done, letters = by_halves(messages, write, "", deadline=2.0, clock=lambda: 1.0)
    assert (done, len(letters)) == (8, 3)
