"""Commits whose key is not known wait beside the stream: order, copies, limits and positions, with a key ring of the test's own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from connectors.atproto.deferred_events import DeferralStatus, seq_of
from connectors.atproto.stream import StreamPartition
from connectors.atproto.stream_sockets import WAKE, Frame
from connectors.identity.key_ring import Key, KeyUnavailable
from connectors.runtime.health import Health
from flows.firehose.flow import deduplicator, signature_checker
from flows.streams import Received
from protocol.event_stream import Account, Commit, Identity
from protocol.verify_commit import Refused, Verified, VerifyReason
from schemas.settings import Settings
from steps.cursor import Cursors
from steps.dedup import DedupCache
from steps.deferred import SIZE_EACH, Deferred

A, B = "https://a.example", "https://b.example"
PLC, OTHER, WEB = "did:plc:" + "p" * 24, "did:plc:" + "o" * 24, "did:web:slow.example"
DATE = "2026-01-01T00:00:00.000Z"


class Ring:
    """Keys that are known, and answers that come when the test says so."""

    def __init__(self) -> None:
        self.keys: dict[str, str | KeyUnavailable | None] = {}
        self.asked: list[str] = []
        self.forgotten: list[str] = []
        self.problem = ""
        self._answers: dict[str, Key[str | None]] = {}
        self._due: set[str] = set()

    @property
    def ready(self) -> bool:
        return bool(self._answers)

    def known(self, dids: Collection[str]) -> dict[str, Any]:
        return {did: self.keys[did] for did in dids if did in self.keys}

    def ask(self, dids: Collection[str]) -> None:
        self.asked += dids

    def answer(self, did: str, key: str | KeyUnavailable | None, old: str | None = None) -> None:
        self.keys[did] = key
        self._answers[did] = Key(key, old)

    def answers(self) -> dict[str, Key[str | None]]:
        taken, self._answers = self._answers, {}
        return taken

    def due(self, did: str) -> bool:
        first = did not in self._due
        self._due.add(did)
        return first

    def forget(self, dids: Collection[str]) -> None:
        self.forgotten += dids
        for did in dids:
            self.keys.pop(did, None)


class Bench:
    """The dedup and signature steps of the firehose over the ring. The key of a commit is the text of its `commit_block`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, untrusted: int = 1 << 20) -> None:
        self.ring = Ring()
        self.deferred = Deferred[Received](1 << 20, untrusted)
        self.remembered = DedupCache(1000)
        self.seq = 0
        monkeypatch.setattr(
            "connectors.identity.commit_signatures.signed", lambda one, key: one.commit_block == key.encode()
        )
        self._dedup = deduplicator(self.remembered, self.deferred)
        ring: Any = self.ring  # what the step uses of one
        self._signatures = signature_checker(Settings(), ring, self.remembered, self.deferred)

    def pass_on(self, *batch: Received) -> list[tuple[int, str]]:
        """(seq, kind) of what comes out, by the order of the frames that went in."""
        return [
            (int(one.frame.data or b"0"), type(one.message).__name__)
            for one in self._signatures(self._dedup(list(batch)))
        ]

    def wake(self) -> list[tuple[int, str]]:
        return self.pass_on(Received(WAKE, None))

    def commit(self, did: str, key: str = "key", relay: str = A, rev: str = "") -> Received:
        self.seq += 1
        event = Commit(self.seq, did, rev or str(self.seq), DATE, None, b"", b"", [], None, False)
        message = Verified(event, b"", key.encode(), None, b"", [], {})  # type: ignore[arg-type]  # nobody looks
        return Received(Frame(relay, str(self.seq).encode()), message)

    def identity(self, did: str) -> Received:
        self.seq += 1
        return Received(Frame(A, str(self.seq).encode()), Identity(self.seq, did, f"{DATE} {self.seq}", None))

    def account(self, did: str) -> Received:
        self.seq += 1
        return Received(Frame(A, str(self.seq).encode()), Account(self.seq, did, DATE, True, None))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_only_the_events_of_an_unknown_key_wait_and_in_order(bench: Bench) -> None:
    """G4: every later event of its DID goes behind it, the events of others pass."""
    bench.ring.keys[OTHER] = "key"
    batch = [bench.commit(PLC), bench.commit(OTHER), bench.account(PLC), bench.commit(PLC), bench.account(OTHER)]
    assert bench.pass_on(*batch) == [(2, "Verified"), (5, "Account")]
    assert bench.pass_on(bench.commit(PLC), bench.commit(OTHER)) == [(7, "Verified")]
    assert bench.ring.asked == [PLC]  # once
    bench.ring.answer(PLC, "key")
    found = bench.pass_on(bench.commit(PLC), bench.commit(OTHER))
    assert found == [*((seq, kind) for seq, kind in found if seq < 7), (8, "Verified"), (9, "Verified")]
    assert [seq for seq, _ in found] == [1, 3, 4, 6, 8, 9]
    assert len(bench.deferred) == 0


def test_what_follows_an_identity_event_waits_for_the_next_key(bench: Bench) -> None:
    """G4."""
    batch = [bench.commit(PLC, "old"), bench.identity(PLC), bench.commit(PLC, "new"), bench.commit(PLC, "new")]
    assert bench.pass_on(*batch) == []
    bench.ring.answer(PLC, "old")
    assert bench.wake() == [(1, "Verified"), (2, "Identity")]
    assert bench.ring.forgotten[-1] == PLC
    assert bench.ring.asked == [PLC, PLC]
    bench.ring.answer(PLC, "new")
    assert bench.wake() == [(3, "Verified"), (4, "Verified")]


def test_a_flood_of_identity_events_costs_one_more_question_and_not_one_each(bench: Bench) -> None:
    """H2: an account that changes its identity all the time would hold the cursor for hours."""
    pairs = [one for _ in range(50) for one in (bench.commit(WEB), bench.identity(WEB))]
    assert bench.pass_on(*pairs) == []
    bench.ring.answer(WEB, KeyUnavailable.UNREACHABLE)
    assert bench.wake() == [(1, "Refused"), (2, "Identity")]
    assert bench.pass_on(bench.commit(WEB)) == []
    bench.ring.answer(WEB, KeyUnavailable.UNREACHABLE)
    assert len(bench.wake()) == 99
    assert bench.ring.asked == [WEB, WEB]
    assert len(bench.deferred) == 0


def test_a_signature_that_does_not_verify_waits_for_the_key_of_today(bench: Bench) -> None:
    bench.ring.keys |= {PLC: "old", OTHER: "key"}
    assert bench.pass_on(bench.commit(PLC, "new"), bench.commit(OTHER)) == [(2, "Verified")]
    assert bench.ring.asked == [PLC]
    bench.ring.answer(PLC, "new")
    assert bench.wake() == [(1, "Verified")]
    assert bench.pass_on(bench.commit(PLC, "forged")) == [(3, "Refused")]  # it was just looked up


def test_silence_about_a_did_is_not_a_bad_signature_and_its_last_key_serves(bench: Bench) -> None:
    bench.ring.keys[PLC] = "old"
    out = []
    assert bench.pass_on(bench.commit(PLC, "forged"), bench.commit(PLC, "old")) == []
    bench.ring.answer(PLC, KeyUnavailable.UNREACHABLE, "old")
    out = bench._signatures([])
    assert isinstance(out[0].message, Refused)
    assert out[0].message.reason is VerifyReason.NO_KEY
    assert isinstance(out[1].message, Verified)


def test_another_copy_of_an_event_that_found_no_key_is_judged_again(bench: Bench) -> None:
    """H3: the mark of the first copy would have dropped the second."""
    first, second, third = (bench.commit(WEB, relay=relay, rev="r") for relay in (A, B, B))
    assert bench.pass_on(first) == bench.pass_on(second) == []  # a copy of what waits
    bench.ring.answer(WEB, KeyUnavailable.UNREACHABLE)
    assert bench.wake() == [(1, "Refused")]
    bench.ring.keys[WEB] = "key"
    assert bench.pass_on(third) == [(3, "Verified")]


def test_no_cursor_passes_what_waits_and_a_dropped_copy_holds_its_own(bench: Bench) -> None:
    """G8."""
    bench.ring.keys[OTHER] = "key"
    bench.pass_on(bench.commit(OTHER), bench.commit(PLC, rev="r"), bench.commit(OTHER))
    bench.pass_on(bench.commit(OTHER, relay=B), bench.commit(PLC, relay=B, rev="r"), bench.commit(OTHER, relay=B))
    assert (bench.deferred.passable(A, 3), bench.deferred.passable(B, 6)) == (1, 4)
    bench.ring.answer(PLC, "key")
    bench.wake()
    assert (bench.deferred.passable(A, 3), bench.deferred.passable(B, 6)) == (3, 6)


def test_what_waited_is_given_out_in_batches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """H2, G4: a directory that comes back releases thousands of events at once."""
    monkeypatch.setattr("connectors.identity.commit_signatures.RELEASE_BYTES", 2)  # a frame here has one byte or two
    assert bench.pass_on(*(bench.commit(did) for did in (PLC, OTHER, PLC, PLC, OTHER, PLC))) == []
    bench.ring.answer(PLC, "key")
    bench.ring.answer(OTHER, "key")
    found = [bench.wake()]
    assert bench.deferred.more
    found.append(bench.pass_on(bench.commit(PLC)))  # behind those that still wait
    while bench.deferred.more:
        found.append(bench.wake())
    assert max(map(len, found)) <= 3  # the new one too
    seqs = [seq for batch in found for seq, _ in batch]
    assert [seq for seq in seqs if seq in (1, 3, 4, 6, 7)] == [1, 3, 4, 6, 7]
    assert [seq for seq in seqs if seq in (2, 5)] == [2, 5]
    assert bench.ring.asked == [PLC, OTHER]


def test_untrusted_hosts_that_used_up_their_bytes_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2, H3: refused as without a key, in order; the directory's room is another."""
    bench = Bench(monkeypatch, untrusted=3 * SIZE_EACH)
    out = bench.pass_on(*(bench.commit(WEB) for _ in range(3)), bench.account(WEB), bench.commit(PLC))
    assert out == [(1, "Refused"), (2, "Refused"), (3, "Refused"), (4, "Account")]
    assert PLC in bench.deferred
    bench.ring.answer(WEB, "key")  # late
    assert bench.wake() == []
    assert bench.pass_on(bench.commit(WEB)) == [(6, "Verified")]


def test_a_position_covers_nothing_that_was_deferred_after_it_was_taken(bench: Bench) -> None:
    """G8: the `cursor` step may have run when the epoch ends, and the `signatures` step not yet."""
    cursors, saved = Cursors(), []

    class Partition(StreamPartition):
        def __init__(self) -> None:
            self.health = Health("firehose", exported=False)
            self._cursors, self._durable, self._fillable = cursors, {}, True
            self._deferral = DeferralStatus("firehose", bench.deferred, bench.ring)  # type: ignore[arg-type]
            self._committed = self._pending = None
            self._draining = self._idle = False
            self._gaps = []
            self._store = self  # type: ignore[assignment]

        def save(self, positions: dict[str, int], *_: Any, **__: Any) -> None:
            saved.append(dict(positions))

        def poll(self) -> list[Frame]:
            return []

    partition, one = Partition(), bench.commit(PLC)
    cursors.positions[A] = seq_of(one.message)
    partition.snapshot()
    bench.pass_on(one)
    partition.next_batch()
    assert saved == [{A: 0}]
    bench.ring.answer(PLC, "key")
    bench.wake()
    partition.snapshot()
    partition.next_batch()
    assert saved == [{A: 0}, {A: 1}]
