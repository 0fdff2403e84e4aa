"""Forged and broken events through the real steps of the firehose and the index: each ends as its named reason, and no row changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import cbrrr
import pytest

from protocol.cid import cid_str
from protocol.event_stream import FrameReason
from protocol.syntax import tid_from_micros
from protocol.verify_commit import VerifyReason
from tests.flows.firehose.hostile_relay import HostileRelay
from tests.support.flow_process import wait_until
from tests.support.live_flow import LiveBed
from tests.support.tiny_repo import Key, Repo, car, cid_of
from tests.support.writable_records import TRIGGER

NOW = time.time_ns() // 1000
START = NOW - 3_600_000_000


DESYNCS = (
    *("duplicate_path", "too_many_ops", "blocks_too_large", "missing_proof", "no_prev", "too_big", "bad_ops"),
    *("bad_car", "bad_field", "root_is_not_commit", "wrong_rev", "wrong_prev_data", "op_not_in_tree", "bad_tree"),
    "sync_too_large",
)
"""What costs a fetch instead of being refused, where the commit is signed."""
ELSEWHERE = ("message_too_large", "failed")
"""Provoked in test_hostile_frames.py: one record under many names, and an exception of our own."""
NO_FRAMES = [
    ("undecodable", b"\xff" * 40),
    ("bad_header", cbrrr.encode_dag_cbor({"op": 1, "t": "#commit"})),
    ("bad_header", cbrrr.encode_dag_cbor([]) + cbrrr.encode_dag_cbor({})),
    ("bad_header", cbrrr.encode_dag_cbor({"op": 7, "t": "#commit"}) + cbrrr.encode_dag_cbor({})),
]


def did(number: int) -> str:
    return "did:plc:" + "abcdefghijklmnopqrstuvwx"[number % 24] * 24


class Author:
    """An account whose repo is in the tables, and what it may say next."""

    def __init__(self, number: int, bed: LiveBed, relay: HostileRelay) -> None:
        self.did, self.key = did(number), Key("p256" if number % 3 == 0 else "secp256k1")
        relay.account(self.did, self.key)
        self.relay = relay
        records: dict[str, object] = {f"a.b.c/3k{at}": {"$type": "a.b.c", "n": at} for at in range(8)}
        self.repo = Repo(records, key=self.key, did=self.did, rev=tid_from_micros(START))
        self.micros = START
        bed.db.execute(TRIGGER)
        bed.db.execute(
            "insert into sluice.repo (did, phase, reason, attempt, rev, data, commit, from_snapshot)"
            " values (%s, 'sync', 'synced', 1, %s, %s, %s, true)",
            (self.did, self.repo.rev, cid_str(self.repo.data), cid_str(self.repo.commit)),
        )
        for path, cid in self.repo.leaves.items():
            bed.db.execute(
                "insert into sluice.record (did, collection, rkey, cid, rev, attempt, json, indexed_at)"
                " values (%s, %s, %s, %s, %s, 1, '{}', '2026-01-01Z')",
                (self.did, *path.split("/"), cid_str(cid), self.repo.rev),
            )

    def next(
        self,
        *,
        key: Key | None = None,
        rev: str | None = None,
        of: str | None = None,
        version: int = 3,
        high_s: bool = False,
        root: object = None,
    ) -> dict[str, Any]:
        """The body of a commit with one record more and one less, on the tree as it stands; the repo does not move.

        `root`: a node that is signed in place of the tree's.
        """
        self.micros += 1_000_000
        before = self.repo
        gone = sorted(before.records)[0]
        new = f"a.b.c/3n{self.micros}"
        records = {path: value for path, value in before.records.items() if path != gone}
        records[new] = {"$type": "a.b.c", "n": self.micros}
        node = cbrrr.encode_dag_cbor(root)
        overrides: dict[str, object] = {"version": version} | ({"data": cbrrr.CID(cid_of(node))} if root else {})
        after = Repo(
            records,
            key=key or self.key,
            did=of or self.did,
            rev=rev or tid_from_micros(self.micros),
            overrides=overrides,
            high_s=high_s,
        )
        after.blocks |= {cid_of(node): node} if root else {}
        self.after = after
        self.blocks = {cid: before.blocks[cid] for cid in before.nodes} | after.blocks
        return {
            "repo": self.did,
            "commit": cbrrr.CID(after.commit),
            "rev": after.rev,
            "since": before.rev,
            "prevData": cbrrr.CID(before.data),
            "blocks": car(after.commit, self.blocks),
            "ops": [
                {"action": "create", "path": new, "cid": cbrrr.CID(after.leaves[new])},
                {"action": "delete", "path": gone, "cid": None, "prev": cbrrr.CID(before.leaves[gone])},
            ],
            "tooBig": False,
            "rebase": False,
            "blobs": [],
            "time": "2026-01-01T00:00:00.000Z",
        }

    def says(self) -> dict[str, Any]:
        """An honest commit, after which the repo stands there."""
        body = self.next()
        self.repo = self.after
        self.relay.send("#commit", body)
        return body

    def stands(self, bed: LiveBed) -> bool:
        """Whether the tables hold exactly the honest repo, in sync."""
        row = bed.rows("select phase, rev, data from sluice.repo where did = %s", self.did)
        return row == [("sync", self.repo.rev, cid_str(self.repo.data))] and self.rows(bed) == self.truth()

    def rows(self, bed: LiveBed) -> dict[str, str]:
        query = "select collection || '/' || rkey, cid from sluice.record where did = %s"
        return dict(bed.rows(query, self.did))  # type: ignore[arg-type]  # two columns

    def truth(self) -> dict[str, str]:
        return {path: cid_str(cid) for path, cid in self.repo.leaves.items()}


@pytest.fixture
def relay() -> Iterator[HostileRelay]:
    one = HostileRelay()
    yield one
    one.close()


def oddities(author: Author, key: Key | None = None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(reason, kind, body) of commits by this key whose frame says something wrong about them; each has a rev of its own."""

    def body(**more: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        made = author.next(key=key, **more)
        return made, *made["ops"]

    made, create, delete = body()
    yield "duplicate_path", "#commit", {**made, "ops": [create, create, delete]}
    made, _, delete = body()
    yield "too_many_ops", "#commit", {**made, "ops": [{**delete, "path": f"a.b.c/{at}"} for at in range(201)]}
    made, *_ = body()
    padding = {cid_of(block): block for block in (bytes([at]) * 1_000_000 for at in (1, 2))}
    yield "blocks_too_large", "#commit", {**made, "blocks": car(author.after.commit, author.blocks | padding)}
    made, *_ = body()
    lean = {cid: block for cid, block in author.blocks.items() if cid != author.after.data}
    yield "missing_proof", "#commit", {**made, "blocks": car(author.after.commit, lean)}
    made, create, delete = body()
    yield "no_prev", "#commit", {**made, "ops": [create, {**delete, "prev": None}]}
    made, *_ = body()
    yield "too_big", "#commit", {**made, "tooBig": True}
    made, create, _ = body()
    yield "bad_ops", "#commit", {**made, "ops": [create, "delete"]}
    made, create, _ = body()
    created = author.after.leaves[create["path"]]
    tampered = {**author.blocks, created: author.blocks[created][:-1] + b"\x7f"}
    yield "bad_car", "#commit", {**made, "blocks": car(author.after.commit, tampered)}
    for field, value in (("rev", "3k"), ("commit", b"no link"), ("ops", {}), ("prevData", b"short")):
        made, *_ = body()
        yield "bad_field", "#commit", {**made, field: value}
    made, *_ = body()
    yield "root_is_not_commit", "#commit", {**made, "commit": cbrrr.CID(author.repo.commit)}
    made, *_ = body()
    yield "wrong_rev", "#commit", {**made, "rev": tid_from_micros(author.micros + 5)}
    made, create, delete = body()
    yield "wrong_prev_data", "#commit", {**made, "ops": [create]}
    made, create, delete = body()
    yield "wrong_prev_data", "#commit", {**made, "ops": [create, {**delete, "prev": create["cid"]}]}
    made, create, delete = body()
    yield (
        "wrong_prev_data",
        "#commit",
        {**made, "ops": [{**create, "action": "update", "prev": delete["prev"]}, delete]},
    )
    made, *_ = body()
    yield "wrong_prev_data", "#commit", {**made, "prevData": made["commit"]}
    made, create, delete = body()
    yield "op_not_in_tree", "#commit", {**made, "ops": [{**create, "path": "a.b.c/elsewhere"}, delete]}
    made, create, delete = body()
    yield "op_not_in_tree", "#commit", {**made, "ops": [{**create, "cid": cbrrr.CID(author.repo.data)}, delete]}
    yield "bad_tree", "#commit", body(root={"e": [], "l": None, "x": 1})[0]
    made, *_ = body()
    only = {author.after.commit: author.after.blocks[author.after.commit], cid_of(b"\1" * 10_000): b"\1" * 10_000}
    sync = {"did": author.did, "rev": author.after.rev, "time": made["time"]}
    yield "sync_too_large", "#sync", {**sync, "blocks": car(author.after.commit, only)}


def forgeries(author: Author) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(reason, kind, body) of everything that must be refused."""
    yield "bad_signature", "#commit", author.next(key=Key())
    for _, kind, body in oddities(author, Key()):
        yield "bad_signature", kind, body  # what is wrong with its frame as well makes no difference
    body = author.next()
    yield "bad_car", "#commit", {**body, "blocks": b""}
    rest = {cid: block for cid, block in author.blocks.items() if cid != author.after.commit}
    yield "no_commit_block", "#commit", {**body, "blocks": car(author.after.commit, rest)}
    body = author.next()
    yield "too_big_no_block", "#commit", {**body, "tooBig": True, "ops": [], "blocks": b""}
    yield "bad_commit", "#commit", author.next(version=2)
    yield "bad_signature", "#commit", author.next(high_s=True)  # anybody can make it of an honest one
    yield "wrong_did", "#commit", author.next(of=did(20))
    yield "future_rev", "#commit", author.next(rev=tid_from_micros(NOW + 86_400_000_000))
    yield "too_large", "#commit", {**author.next(), "blobs": ["x" * 5_000_000]}
    for field, value in (("repo", "somebody"), ("blocks", None)):
        yield "bad_field", "#commit", {**author.next(), field: value}
    yield "bad_field", "#account", {"did": author.did, "active": "no", "time": "2026-01-01T00:00:00.000Z"}
    forged = Repo({}, key=Key(), did=author.did, rev=tid_from_micros(author.micros + 9))
    sync = {"did": author.did, "rev": forged.rev, "time": "2026-01-01T00:00:00.000Z"}
    only = {forged.commit: forged.blocks[forged.commit]}
    yield "bad_signature", "#sync", {**sync, "blocks": car(forged.commit, only)}
    nobody = Repo({}, key=author.key, did=did(21), rev=tid_from_micros(author.micros))
    only = {nobody.commit: nobody.blocks[nobody.commit]}
    yield "no_key", "#sync", {**sync, "did": did(21), "rev": nobody.rev, "blocks": car(nobody.commit, only)}


def test_every_forgery_ends_as_its_reason_and_changes_no_row(relay: HostileRelay, live_bed: LiveBed) -> None:
    """N1, G7, H6: nor does it cost a fetch, whatever is wrong with its frame."""
    author = Author(1, live_bed, relay)
    first = author.says()
    wanted = []
    for reason, kind, body in forgeries(author):
        relay.send(kind, body)
        wanted.append(reason)
    for reason, frame in NO_FRAMES:
        relay.frames.append((len(relay.frames) + 1, frame))
        wanted.append(reason)
    assert {*wanted, *DESYNCS, *ELSEWHERE} == {*VerifyReason, *FrameReason}, "a reason that nothing here provokes"
    relay.send("#commit", first)  # a replayed old commit
    old = author.next(rev=tid_from_micros(START - 5_000_000))  # one that was signed long ago, of another history
    relay.send("#commit", old)
    author.says()
    live_bed.index()
    flow = live_bed.start("firehose", relays=[relay.url], plc=relay.url, firehose_start="oldest")
    wait_until(lambda: author.stands(live_bed), what="the tables hold the honest commits")
    # one batch, two topics: the broker may have the letters later than what the index has settled already
    wait_until(lambda: len(live_bed.messages("dead_letter")) >= len(wanted), what=f"{len(wanted)} letters")
    letters = [value for _, value in live_bed.messages("dead_letter")]
    assert sorted(letter["reason"] for letter in letters) == sorted(wanted)
    unnamed = sorted(letter["reason"] for letter in letters if letter.get("did") is None)
    assert unnamed == ["bad_field", "bad_header", "bad_header", "bad_header", "too_large", "undecodable"]
    assert [value["rev"] for _, value in live_bed.messages("firehose_live")].count(author.repo.rev) == 1
    # what an account signed once is true, only late: the log has it, and the gate drops it by its rev
    assert [value["rev"] for _, value in live_bed.messages("firehose_live")] == [
        first["rev"],
        old["rev"],
        author.repo.rev,
    ]
    assert live_bed.rows("select did from sluice.repo") == [(author.did,)]
    # asked for at most once more, not once per forgery; not at all if the key is newer than their receipt
    assert relay.asked.count(author.did) in (1, 2)
    assert flow.terminate() == 0


def test_what_cannot_be_known_is_fetched_again_and_named(relay: HostileRelay, live_bed: LiveBed) -> None:
    """N1, H6: a signed commit whose frame is wrong costs a fetch, and no row is written from it."""
    cases: dict[str, Author] = {}
    reasons = [reason for reason, _, _ in oddities(Author(23, live_bed, relay))]
    assert set(reasons) == set(DESYNCS)
    for number, reason in enumerate(dict.fromkeys(reasons)):
        author = cases[reason] = Author(number, live_bed, relay)
        for _, kind, body in [one for one in oddities(author) if one[0] == reason]:
            relay.send(kind, body)
    live_bed.index()
    live_bed.start("firehose", relays=[relay.url], plc=relay.url, firehose_start="oldest")

    def desynced() -> bool:
        rows = live_bed.rows("select did from sluice.repo where phase = 'pending' and reason = 'desync'")
        return {row[0] for row in rows} == {author.did for author in cases.values()}

    wait_until(desynced, what="every repo waits for a fetch")
    wait_until(lambda: len(live_bed.messages("dead_letter")) >= len(reasons), what="a letter of each")
    assert {value["did"]: value["reason"] for _, value in live_bed.messages("dead_letter")} == {
        author.did: reason for reason, author in cases.items()
    }
    assert all(author.rows(live_bed) == author.truth() for author in cases.values())
    # several events of one repo ask for one fetch
    assert {row[0] for row in live_bed.rows("select desyncs from sluice.repo where phase = 'pending'")} == {1}


def test_a_new_key_is_learned_from_identity_or_from_the_first_signature_that_fails(
    relay: HostileRelay, live_bed: LiveBed
) -> None:
    """N1: neither an #identity nor a lost one costs a commit."""
    told, silent = Author(1, live_bed, relay), Author(2, live_bed, relay)
    live_bed.index()
    live_bed.start("firehose", relays=[relay.url], plc=relay.url, firehose_start="oldest")
    for author in (told, silent):
        author.says()
    wait_until(lambda: told.stands(live_bed) and silent.stands(live_bed))
    for author in (told, silent):
        author.key = Key()
        relay.account(author.did, author.key)
        if author is told:
            relay.send("#identity", {"did": author.did, "time": "2026-01-01T00:00:01.000Z"})
        author.says()
    wait_until(lambda: told.stands(live_bed) and silent.stands(live_bed))
    assert live_bed.messages("dead_letter") == []
    assert relay.asked.count(told.did) == relay.asked.count(silent.did) == 2


def test_an_unavailable_directory_delays_events_and_refuses_none(relay: HostileRelay, live_bed: LiveBed) -> None:
    """N1, G7: the reason is on the health page; one DID that alone gets no answer does not hold up the others."""
    author = Author(1, live_bed, relay)
    relay.plc_status = 500
    author.says()
    live_bed.index()
    flow = live_bed.start("firehose", relays=[relay.url], plc=relay.url, firehose_start="oldest")
    wait_until(lambda: (page := flow.health())["state"] == "failing" and "answered 500" in page["why"])
    assert live_bed.messages("firehose_live") == live_bed.messages("dead_letter") == []
    relay.plc_status = 200
    wait_until(lambda: author.stands(live_bed))
    assert live_bed.messages("dead_letter") == []
    relay.plc_status = 500
    flow.kill()
    other = Author(2, live_bed, relay)
    other.says()
    flow = live_bed.start("firehose", relays=[relay.url], plc=relay.url, firehose_start="oldest")
    wait_until(lambda: flow.health()["state"] == "failing")
    flow.terminate()  # ends, though the directory is still away
    assert live_bed.messages("dead_letter") == []


def test_a_reported_bad_signature_passes_and_is_counted(relay: HostileRelay, live_bed: LiveBed) -> None:
    author = Author(1, live_bed, relay)
    relay.account(author.did, Key())  # so that nothing verifies
    author.says()
    live_bed.index()
    flow = live_bed.start("firehose", relays=[relay.url], plc=relay.url, firehose_start="oldest", verify="report")
    wait_until(lambda: author.stands(live_bed))
    counted = flow.metric("sluice_reported_failures_total", reason="bad_signature")
    assert (counted, len(relay.asked)) == (1, 1)
