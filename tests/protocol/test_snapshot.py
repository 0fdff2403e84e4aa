"""Commits and snapshots: what is accepted is whole, new enough, of the right account and signed by its key."""

import hashlib
import os
import random

import cbrrr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.backfill import encode as messages
from flows.backfill.encode import Attempt, create_messages
from protocol import snapshot as module
from protocol.car import CarIndex, CarLimits, index_bytes
from protocol.car_format import CarError
from protocol.cid import cid_str
from protocol.commit import CommitObject, CommitRejected, parse_commit
from protocol.encoding.record_json import leaf_body
from protocol.mst.tree import build
from protocol.snapshot import (
    Limits,
    Snapshot,
    SnapshotReason,
    SnapshotRejected,
    from_car_error,
    opening,
)
from schemas import wire
from tests.protocol.car_file import index_file
from tests.protocol.mst.row_key import key_of
from tests.protocol.snapshots_of import REPO, opened, refused
from tests.support.opened_snapshot import open_snapshot
from tests.support.tiny_repo import DID, REV, Key, Repo, car, cid_of, put, sample, tree


def truth(repo: Repo) -> list[tuple[str, str, bytes, bytes]]:
    return [(*path.split("/"), cid, repo.blocks[cid]) for path, cid in sorted(repo.leaves.items())]


def rows_of(snapshot: Snapshot) -> list[tuple[str, str, bytes, bytes | None]]:
    return [row[:4] for row in snapshot.records()]


@pytest.mark.parametrize("curve", ["secp256k1", "p256"])
def test_a_whole_repo(curve: str) -> None:
    repo = sample(120, key=Key(curve))
    got = opened(repo)
    assert (got.head.did, got.head.rev, got.head.commit, got.head.data) == (
        DID,
        REV,
        cid_str(repo.commit),
        cid_str(repo.data),
    )
    assert got.head.commit_block == repo.blocks[repo.commit]
    assert rows_of(got) == truth(repo) == rows_of(got)
    assert got.count == 120
    assert got.bad_paths == 0


def test_an_empty_repo() -> None:
    got = opened(sample(0))
    assert (got.count, rows_of(got)) == (0, [])


def test_a_large_repo_is_walked_again_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: memory is bounded by walking twice; from a file as well."""
    monkeypatch.setattr(module, "KEPT_LEAVES", 10)
    fd = os.memfd_create("car")
    os.write(fd, REPO.car())
    got = open_snapshot(index_file(fd), DID, REPO.key.did_key, None)
    assert got._kept is None
    assert got.count == 120
    assert rows_of(got) == truth(REPO)


def test_block_order_does_not_matter() -> None:
    blocks = list(REPO.blocks.items())
    random.Random(5).shuffle(blocks)
    assert rows_of(opened(REPO, car(REPO.commit, dict(blocks)))) == truth(REPO)


def test_another_accounts_repo_is_refused() -> None:
    verdict = refused(sample(3, did="did:plc:somebodyelse"))
    assert (verdict.reason, verdict.transient) == (SnapshotReason.WRONG_DID, False)


def test_revs() -> None:
    assert opened(REPO, min_rev=REV).count == opened(REPO, min_rev="").count == opened(REPO, max_rev=REV).count
    stale = refused(REPO, min_rev=REV[:-1] + "3")
    assert (stale.reason, stale.transient) == (SnapshotReason.STALE, True)
    assert refused(REPO, max_rev="3kzaaaaaaaaaa").reason is SnapshotReason.FUTURE_REV


def test_signatures() -> None:
    assert refused(REPO, signing_key=Key().did_key).reason is SnapshotReason.BAD_SIGNATURE
    assert refused(REPO, signing_key=Key("p256").did_key).reason is SnapshotReason.BAD_SIGNATURE
    assert refused(REPO, signing_key=None).reason is SnapshotReason.NO_KEY
    assert refused(REPO, signing_key="did:key:z6Mk").reason is SnapshotReason.NO_KEY
    for curve in ("secp256k1", "p256"):
        assert refused(sample(3, key=Key(curve), high_s=True)).reason is SnapshotReason.BAD_SIGNATURE
    assert not refused(REPO, signing_key=Key().did_key).transient


def test_every_missing_block_is_found_and_transient() -> None:
    """A CAR cut between blocks is well-formed; the walk finds each gap: commit, node or record."""
    for gone in REPO.blocks:
        verdict = refused(REPO, car(REPO.commit, {cid: block for cid, block in REPO.blocks.items() if cid != gone}))
        assert (verdict.reason, verdict.transient) == (SnapshotReason.MISSING_BLOCK, True)


def test_every_cut_is_a_transient_verdict() -> None:
    """A CAR truncated anywhere: a typed rejection, never another exception, never a shorter repo."""
    repo = sample(8)
    data = repo.car()
    reasons = set()
    for cut in range(len(data)):
        try:
            index = index_bytes(data[:cut])
        except CarError as err:
            verdict = from_car_error(err)
        else:
            with pytest.raises(SnapshotRejected) as caught:
                open_snapshot(index, DID, repo.key.did_key, None)
            verdict = caught.value
        assert verdict.transient
        reasons.add(verdict.reason)
    assert reasons == {SnapshotReason.TRUNCATED, SnapshotReason.MISSING_BLOCK}


def test_a_tampered_record_is_found() -> None:
    """G3: the block no longer hashes to its CID; put under its own CID it is no longer in the signed tree."""
    victim = next(iter(REPO.leaves.values()))
    forged = REPO.blocks[victim].replace(b"number", b"forged")
    with pytest.raises(CarError) as caught:
        index_bytes(car(REPO.commit, REPO.blocks | {victim: forged}))
    assert from_car_error(caught.value).reason is SnapshotReason.BAD_CAR
    assert not from_car_error(caught.value).transient
    blocks = {cid: block for cid, block in REPO.blocks.items() if cid != victim}
    assert refused(REPO, car(REPO.commit, blocks | {cid_of(forged): forged})).reason is SnapshotReason.MISSING_BLOCK


def test_a_malformed_tree_is_refused() -> None:
    repo = sample(5)
    bad = put({"e": [], "l": cbrrr.CID(repo.data)}, repo.blocks)
    signed = sample(5, overrides={"data": cbrrr.CID(bad)}, key=repo.key)
    verdict = refused(repo, car(signed.commit, repo.blocks | signed.blocks))
    assert (verdict.reason, verdict.transient) == (SnapshotReason.BAD_MST, False)


def test_a_bad_path_costs_that_record_its_body_only() -> None:
    """G7: counted, reported, and the count still is that of the records."""
    records = {
        "app.bsky.feed.post/..": {"a": 1},
        "nonsense": {"a": 2},
        "x/y/z": {"a": 3},
        "app.bsky.feed.post/fine": {"a": 4},
        "app.bsky.feed.post/ü": {"a": 5},
    }
    repo = Repo(records)
    got = opened(repo)
    rows = rows_of(got)
    assert [rkey for _, rkey, _, block in rows if block is not None] == ["fine"]
    assert (got.count, got.bad_paths, len(rows)) == (5, 4, 5)
    pairs = [(collection, rkey) for collection, rkey, _, _ in rows]
    assert {("app.bsky.feed.post", ".."), ("nonsense", "\\"), ("x", "y/z")} < set(pairs)
    # G3: the rows rebuild the tree that the account signed
    assert build((key_of(*pair), cid) for pair, (_, _, cid, _) in zip(pairs, rows, strict=True)) == repo.data


def with_leaves(extra: dict[str, tuple[bytes, bytes | None]], repo: Repo) -> tuple[bytes, dict[str, bytes]]:
    """A CAR of the repo whose tree names these as well, path → (CID, block or none); and its leaves."""
    blocks = repo.blocks | {cid: block for cid, block in extra.values() if block is not None}
    leaves = repo.leaves | {path: cid for path, (cid, _) in extra.items()}
    root = tree(leaves, blocks)
    signed = Repo({}, overrides={"data": cbrrr.CID(root)}, key=repo.key)
    return car(signed.commit, blocks | signed.blocks), leaves


def test_leaves_that_cannot_be_checked_are_rows_without_a_body() -> None:
    """G7: whatever a leaf names, its neighbours are given out, and the rows rebuild the tree."""
    large = cbrrr.encode_dag_cbor({"text": "x" * (3 << 20)})
    sha512 = b"\x01\x71\x13\x40" + hashlib.sha512(b"x").digest()
    extra = {
        "a.b.c/raw": (b"\x01\x55\x12\x20" + hashlib.sha256(b"bytes").digest(), b"bytes"),
        "a.b.c/large": (cid_of(large), large),
        "a.b.c/sha512": (sha512, b"x"),
        "a.b.c/identity": (b"\x01\x55\x00\x05hello", None),
        "a.b.c/v0": (b"\x12\x20" + hashlib.sha256(b"x").digest(), None),
        "a.b.c/codec": (b"\x01\x70\x12\x20" + hashlib.sha256(b"x").digest(), b"x"),
    }
    repo = sample(9)
    data, leaves = with_leaves(extra, repo)
    for index in (index_bytes(data), index_of_file(data)):
        got = open_snapshot(index, DID, repo.key.did_key)
        assert (got.count, got.bodiless) == (15, 5)
        found = {f"{collection}/{rkey}": (cid, block) for collection, rkey, cid, block in rows_of(got)}
        assert {path: cid for path, (cid, _) in found.items()} == leaves
        assert cid_str(build((path, cid) for path, (cid, _) in sorted(found.items()))) == got.head.data
        events = [wire.decode_backfill(value) for value in create_messages(got, Attempt(DID, 1, "t"), 1 << 24)]
        bodies = {
            event.rkey: (event.cid, event.reason, event.raw is not None)
            for event in events
            if event.collection == "a.b.c"
        }
        assert bodies == {
            path.partition("/")[2]: (cid_str(cid), reason, reason == "raw_block")
            for (path, (cid, _)), reason in zip(
                extra.items(), ["raw_block", "too_large", *["foreign_cid"] * 4], strict=True
            )
        }
        assert all(event.reason is None for event in events if event.collection != "a.b.c")


def index_of_file(data: bytes) -> CarIndex:
    fd = os.memfd_create("car")
    os.write(fd, data)
    return index_file(fd)


def test_a_raw_block_that_is_missing_is_missed() -> None:
    """What a hash of ours names has to be in the CAR, whatever its codec."""
    repo = sample(3)
    data, _ = with_leaves({"a.b.c/raw": (b"\x01\x55\x12\x20" + bytes(32), None)}, repo)
    assert refused(repo, data).reason is SnapshotReason.MISSING_BLOCK


def test_a_node_or_commit_above_the_limit_of_a_block_fails_the_repo() -> None:
    """G7: without them nothing is proven; the next download would end in the same way."""
    repo = sample(60)
    for cid, reason in ((repo.commit, SnapshotReason.BAD_COMMIT), (repo.data, SnapshotReason.BAD_MST)):
        index = CarIndex(limits=CarLimits(block=len(repo.blocks[cid]) - 129))
        index.feed(car(repo.commit, {cid: repo.blocks[cid], **repo.blocks}))
        assert cid in index.oversized
        with pytest.raises(SnapshotRejected) as caught:
            open_snapshot(index, DID, repo.key.did_key)
        assert (caught.value.reason, caught.value.transient) == (reason, False)


@pytest.mark.parametrize("in_file", [False, True])
def test_one_block_that_many_leaves_name_is_too_large_before_anything_is_made_of_it(in_file: bool) -> None:
    """H2: each leaf counts, not each block; from the index alone, no block is read for it."""
    block = cbrrr.encode_dag_cbor({"text": "x" * 50_000})
    repo = sample(3)
    data, _ = with_leaves({f"a.b.c/{n:04}": (cid_of(block), block) for n in range(200)}, repo)
    assert len(data) < 100_000
    index = index_of_file(data) if in_file else index_bytes(data)
    total = 200 * len(block) + sum(len(repo.blocks[cid]) for cid in repo.leaves.values())
    assert [one.size for one in opening(index, DID, repo.key.did_key, limits=Limits(total + 20_000)) if one] == [total]
    for limits, setting in (
        (Limits(total - 1), "BACKFILL_MAX_CAR_BYTES"),
        (Limits(records=202), "BACKFILL_MAX_CAR_BYTES"),
    ):
        with pytest.raises(SnapshotRejected) as caught:
            list(opening(index, DID, repo.key.did_key, limits=limits))
        assert (caught.value.reason, caught.value.transient) == (SnapshotReason.TOO_LARGE, False)
        assert f"SLUICE_{setting}" in caught.value.detail
        assert "JSON" not in caught.value.detail, "no block was read for it"


def test_control_characters_of_a_block_that_is_named_often_count_as_json_writes_them() -> None:
    """H2: each takes six bytes. A repo that names its blocks once is bounded by its CAR, and not weighed."""
    block = cbrrr.encode_dag_cbor({"text": "\x01" * 10_000})
    repo = sample(3)
    for leaves, limit, good in ((20, 1_300_000, True), (20, 600_000, False), (1, 20_000, True)):
        data, _ = with_leaves({f"a.b.c/{n:04}": (cid_of(block), block) for n in range(leaves)}, repo)
        steps = opening(index_bytes(data), DID, repo.key.did_key, limits=Limits(limit))
        if good:
            *_, snapshot = steps
            assert snapshot is not None
            if leaves > 1:
                assert sum(map(len, create_messages(snapshot, Attempt(DID, 1, "t"), 1 << 24))) < limit
        else:
            with pytest.raises(SnapshotRejected, match="SLUICE_BACKFILL_MAX_CAR_BYTES"):
                list(steps)


def test_a_tree_is_walked_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: no tree holds the flow for its whole length."""
    monkeypatch.setattr(module, "WALKED_LEAVES", 25)
    steps = list(opening(index_bytes(REPO.car()), DID, REPO.key.did_key))
    assert steps[:-1] == [None] * 4
    assert steps[-1] is not None


def test_a_bomb_that_many_leaves_name_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: nesting costs seconds a block; two of them in turn cost what two blocks cost."""
    bombs = [b"\xa1\x61" + name + b"\x81" * 5000 + b"\x01" for name in (b"a", b"b")]
    repo = sample(1)
    extra = {f"a.b.c/{n:04}": (cid_of(bombs[n % 2]), bombs[n % 2]) for n in range(50)}
    got = opened(repo, with_leaves(extra, repo)[0])
    decoded: list[bytes] = []
    monkeypatch.setattr(
        messages, "leaf_body", lambda cid, block, missing: decoded.append(cid) or leaf_body(cid, block, missing)
    )
    events = [wire.decode_backfill(value) for value in create_messages(got, Attempt(DID, 1, "t"), 1 << 24)]
    assert [event.reason for event in events if event.collection == "a.b.c"] == ["too_deep"] * 50
    assert len(decoded) == 3


def test_odd_record_blocks_are_given_out_as_they_are() -> None:
    """G7: what is in a block is for the body to say."""
    repo = sample(3)
    blocks = dict(repo.blocks)
    odd = b"\xff no cbor"
    leaves = repo.leaves | {"app.bsky.feed.post/odd": cid_of(odd)}
    blocks[cid_of(odd)] = odd
    root = tree(leaves, blocks)
    signed = sample(0, overrides={"data": cbrrr.CID(root)}, key=repo.key)
    got = opened(repo, car(signed.commit, blocks | signed.blocks))
    assert odd in [block for *_, block in rows_of(got)]
    assert got.count == 4


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_fuzz(noise: bytes, at: int) -> None:
    """G7: no commit block, and no repo behind it, raises anything but its typed rejection."""
    good = REPO.blocks[REPO.commit]
    for block in (noise, good[:at] + noise + good[at + len(noise) :]):
        parsed = parse_commit(block)
        assert isinstance(parsed, CommitObject | CommitRejected)
        index = CarIndex()
        index.feed(car(cid_of(block), REPO.blocks | {cid_of(block): block}))
        if block != good:
            with pytest.raises(SnapshotRejected):
                open_snapshot(index, DID, REPO.key.did_key, None)
