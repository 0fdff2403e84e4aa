"""Sources of labels: which of them a labeler makes us look for. The real resolver and identity table, a directory of the test's."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, product
from string import ascii_lowercase
from typing import Any

import pytest
from cbrrr import encode_dag_cbor

from connectors.atproto.deferred_events import new_deferred
from connectors.atproto.stream_sockets import Frame
from connectors.identity.key_ring import KeyRing
from connectors.identity.label_signatures import CheckedFrame, LabelSignatures
from connectors.identity.label_sources import FOREIGN_SECONDS, UNPROVEN_LOOKUPS, UNPROVEN_SECONDS
from connectors.runtime.health import Health
from flows.labels.flow import encode_all, label_signer
from flows.streams import Received
from protocol.enforcement import Enforcement
from protocol.event_stream import Labels
from protocol.labels import LabelReason, LabelRejected
from schemas import wire
from schemas.settings import Settings
from simulator.repo.keys import derive_key, multikey

URL, OTHER = "https://labels.example", "https://other.example"
KEY = derive_key("secp256k1", "labels")


def did(name: str) -> str:
    return "did:plc:" + name.ljust(24, "a")


MINE, THEIRS = did("mine"), did("theirs")
STRANGERS = [did("x" + "".join(letters)) for letters in islice(product(ascii_lowercase, repeat=3), 1000)]


class Directory:
    """Labelers' documents, and how often each DID was asked for."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.at = {MINE: URL, THEIRS: OTHER}
        directory = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                one = self.path[1:]
                directory.asked[one] += 1
                body = json.dumps(directory.document(one)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def document(self, one: str) -> dict[str, Any]:
        service = {
            "id": "#atproto_labeler",
            "type": "AtprotoLabeler",
            "serviceEndpoint": self.at.get(one, "https://no"),
        }
        key = {"id": f"{one}#atproto_label", "type": "Multikey", "controller": one, "publicKeyMultibase": multikey(KEY)}
        return {"id": one, "service": [service], "verificationMethod": [key]}


class Desk:
    """Signatures over the directory, and a clock of our own."""

    def __init__(self, database: str) -> None:
        self.directory = Directory()
        self.now = 1000.0
        settings = Settings(database=database, plc=self.directory.url, allow_private_hosts=True)
        self.ring = KeyRing(settings, Health("labels"), label_signer)
        self.deferred = new_deferred()
        self.signatures = LabelSignatures[Received](
            "labels", self.ring, Enforcement.ENFORCE, self.deferred, lambda: self.now
        )

    def check(self, url: str, *sources: str) -> list[LabelReason | None]:
        (judged,) = self.judged(frame(url, sources))
        return [judged.wrong[at].reason if at in judged.wrong else None for at in range(len(sources))]

    def judged(self, *frames: Received) -> list[CheckedFrame[Received]]:
        """Verdicts of all frames, as they come."""
        found = self.signatures.check(frames)
        return found + self.judged_later(len(frames) - len(found))

    def judged_later(self, count: int) -> list[CheckedFrame[Received]]:
        found: list[CheckedFrame[Received]] = []
        while len(found) < count:
            self.ring.wait()
            found += self.signatures.check([])
        return found

    def asked(self) -> int:
        return sum(count for one, count in self.directory.asked.items() if one in STRANGERS)


def frame(url: str, sources: Sequence[str]) -> Received:
    return Received(Frame(url, b"frame"), Labels(7, [signed(src) for src in sources]))


def signed(src: str) -> dict[str, Any]:
    label = {"ver": 1, "src": src, "uri": src, "val": "a", "cts": "2026-01-01T00:00:00.000Z"}
    return {**label, "sig": KEY.sign(encode_dag_cbor(label))}


@pytest.fixture
def desk(database: str) -> Iterator[Desk]:
    one = Desk(database)
    yield one
    one.ring.close()
    one.directory.server.shutdown()
    one.directory.server.server_close()


def test_a_labeler_with_many_foreign_sources_causes_few_lookups_and_delays_no_other(desk: Desk) -> None:
    """G9: each source is a question that all labelers wait for; a frame holds tens of thousands."""
    found = desk.judged(frame(URL, [*STRANGERS, MINE]), frame(OTHER, [THEIRS]))
    wrong = {one.item.frame.upstream: one.wrong for one in found}
    assert {why.reason for why in wrong[URL].values()} == {LabelReason.BAD_SRC}
    assert len(wrong[URL]) == len(STRANGERS) + 1
    assert wrong[OTHER] == {}  # the other labeler's
    assert len(desk.directory.asked) <= UNPROVEN_LOOKUPS + 1
    assert desk.asked() <= 2 * UNPROVEN_LOOKUPS  # a doubtful one is looked for once more


def test_a_proven_source_needs_no_lookup_and_survives_a_flood(desk: Desk) -> None:
    assert desk.check(URL, MINE) == [None]
    for _ in range(3):
        assert desk.check(URL, *STRANGERS, MINE)[-1] is None


def test_a_lookup_permit_returns_with_time_and_a_foreign_source_stays_refused_meanwhile(desk: Desk) -> None:
    """Whoever names his labeler's URL in his document later is believed later."""
    first, *others = STRANGERS[: UNPROVEN_LOOKUPS + 1]
    late = others.pop()
    desk.check(URL, first, *others)
    assert desk.check(URL, late) == [LabelReason.BAD_SRC]
    assert desk.directory.asked[late] == 0
    desk.directory.at[late] = desk.directory.at[first] = URL
    desk.now += UNPROVEN_SECONDS
    assert desk.check(URL, first, late) == [LabelReason.BAD_SRC, None]  # of the first we know
    desk.now += FOREIGN_SECONDS
    desk.ring.forget([first])
    assert desk.check(URL, first) == [None]


def test_a_source_at_a_silent_host_delays_its_own_labeler_only(desk: Desk) -> None:
    """H3, G4: all labelers waited for it. The labeler's later frames keep their order behind it."""
    with socket.create_server(("127.0.0.1", 0)) as host:
        silent = f"did:web:localhost%3A{host.getsockname()[1]}"
        assert desk.check(URL, MINE) == [None]
        assert desk.check(OTHER, THEIRS) == [None]
        first, second = frame(URL, [MINE, silent]), frame(URL, [MINE])
        (other,) = desk.signatures.check([first, second, frame(OTHER, [THEIRS])])
        assert (other.item.frame.upstream, other.wrong) == (OTHER, {})
        assert (desk.deferred.passable(URL, 7), desk.deferred.passable(OTHER, 7)) == (6, 7)
        found = desk.judged_later(2)
    assert [one.item for one in found] == [first, second]
    assert [{at: why.reason for at, why in one.wrong.items()} for one in found] == [{1: LabelReason.NO_KEY}, {}]
    assert desk.deferred.passable(URL, 7) == 7


def test_a_frame_becomes_one_dead_letter_for_each_reason() -> None:
    """A letter holds its frame: one for each of ten thousand labels would be gigabytes."""
    wrong = LabelRejected(LabelReason.BAD_SRC, "not mine")
    labels = [signed(MINE) for _ in range(100)]
    labels[3]["val"] = ""
    received = Received(Frame(URL, b"frame"), Labels(7, labels))
    checked = CheckedFrame(received, dict.fromkeys(range(10, 100), wrong))
    out = encode_all([checked])
    letters = [wire.decode_dead_letter(one.value) for one in out if one.topic == "dead_letter"]
    assert [(one.reason, one.error) for one in letters] == [
        ("bad_val", "''"),
        ("bad_src", "not mine; and 89 more labels"),
    ]
    assert len(out) == 9 + 2
