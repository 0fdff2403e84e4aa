"""Commits and snapshots: what is accepted is whole, new enough, of the right account and signed by its key."""

import os
import random

import cbrrr
import pytest
from car_file import index_file
from hypothesis import given, settings
from hypothesis import strategies as st
from row_key import key_of
from tiny_repo import DID, REV, Key, Repo, car, cid_of, put, sample

from steps import snapshot as module
from steps.car import CarError, CarIndex, index_bytes
from steps.cid import cid_bytes, cid_str
from steps.commit import Commit, CommitReason, CommitRejected, parse_commit, verify_commit
from steps.mst import build
from steps.snapshot import Snapshot, SnapshotReason, SnapshotRejected, from_car_error, open_snapshot

REPO = sample(120)


def opened(repo: Repo, data: bytes | None = None, min_rev: str | None = None, **changes: str | None) -> Snapshot:
    arguments = {"did": DID, "signing_key": repo.key.did_key, "min_rev": min_rev} | changes
    return open_snapshot(index_bytes(repo.car() if data is None else data), **arguments)


def refused(repo: Repo, data: bytes | None = None, **changes: str | None) -> SnapshotRejected:
    with pytest.raises(SnapshotRejected) as caught:
        opened(repo, data, **changes)
    return caught.value


def truth(repo: Repo) -> list[tuple[str, str, str, bytes]]:
    return [(*path.split("/"), cid_str(cid), repo.blocks[cid]) for path, cid in sorted(repo.leaves.items())]


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
    assert list(got.records()) == truth(repo) == list(got.records())
    assert got.count == 120
    assert got.bad_paths == 0


def test_an_empty_repo() -> None:
    got = opened(sample(0))
    assert (got.count, list(got.records())) == (0, [])


def test_a_large_repo_is_walked_again_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: memory is bounded by walking twice; from a file as well."""
    monkeypatch.setattr(module, "KEPT_LEAVES", 10)
    fd = os.memfd_create("car")
    os.write(fd, REPO.car())
    got = open_snapshot(index_file(fd), DID, REPO.key.did_key, None)
    assert got._kept is None
    assert got.count == 120
    assert list(got.records()) == truth(REPO)


def test_block_order_does_not_matter() -> None:
    blocks = list(REPO.blocks.items())
    random.Random(5).shuffle(blocks)
    assert list(opened(REPO, car(REPO.commit, dict(blocks))).records()) == truth(REPO)


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
    rows = list(got.records())
    assert [rkey for _, rkey, _, block in rows if block is not None] == ["fine"]
    assert (got.count, got.bad_paths, len(rows)) == (5, 4, 5)
    pairs = [(collection, rkey) for collection, rkey, _, _ in rows]
    assert {("app.bsky.feed.post", ".."), ("nonsense", "\\"), ("x", "y/z")} < set(pairs)
    # G3: the rows rebuild the tree that the account signed
    assert build((key_of(*pair), cid_bytes(cid)) for pair, (_, _, cid, _) in zip(pairs, rows, strict=True)) == repo.data


def test_odd_record_blocks_are_given_out_as_they_are() -> None:
    """G7: what is in a block is for the body to say."""
    repo = sample(3)
    blocks = dict(repo.blocks)
    odd = b"\xff no cbor"
    leaves = repo.leaves | {"app.bsky.feed.post/odd": cid_of(odd)}
    blocks[cid_of(odd)] = odd
    from tiny_repo import tree

    root = tree(leaves, blocks)
    signed = sample(0, overrides={"data": cbrrr.CID(root)}, key=repo.key)
    got = opened(repo, car(signed.commit, blocks | signed.blocks))
    assert odd in [block for *_, block in got.records()]
    assert got.count == 4


def test_commits() -> None:
    commit = parse_commit(REPO.blocks[REPO.commit])
    assert isinstance(commit, Commit)
    assert (commit.did, commit.rev, commit.data, commit.prev, commit.version) == (DID, REV, REPO.data, None, 3)
    assert verify_commit(commit, REPO.key.did_key)
    assert not verify_commit(commit, "nonsense")


def test_what_is_signed_is_kept_exactly() -> None:
    """`prev: null`, a present prev, an absent one, and fields nobody knows yet: each is part of the signed bytes."""
    for overrides in ({"prev": None}, {"prev": cbrrr.CID(REPO.commit)}, {"future": [1, {"a": b"x"}]}):
        repo = sample(2, overrides=overrides)
        commit = parse_commit(repo.blocks[repo.commit])
        assert isinstance(commit, Commit)
        assert verify_commit(commit, repo.key.did_key)
    value = cbrrr.decode_dag_cbor(REPO.blocks[REPO.commit])
    del value["prev"]
    commit = parse_commit(cbrrr.encode_dag_cbor(value))
    assert isinstance(commit, Commit)
    assert not verify_commit(commit, REPO.key.did_key)  # the null was signed, and is gone


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("version", 2, CommitReason.BAD_VERSION),
        ("version", "3", CommitReason.BAD_VERSION),
        ("version", 3.0, CommitReason.BAD_VERSION),
        ("version", True, CommitReason.BAD_VERSION),
        ("did", "alice.example.com", CommitReason.BAD_FIELD),
        ("did", None, CommitReason.BAD_FIELD),
        ("rev", "2026-01-01", CommitReason.BAD_FIELD),
        ("rev", "kznmn7xqxl22a", CommitReason.BAD_FIELD),
        ("rev", 5, CommitReason.BAD_FIELD),
        ("data", "bafyrei", CommitReason.BAD_FIELD),
        ("data", b"x" * 36, CommitReason.BAD_FIELD),
        ("data", cbrrr.CID(b"\x01\x55\x12\x20" + bytes(32)), CommitReason.BAD_FIELD),
        ("data", cbrrr.CID(b"\x01\x71\x12\x20"), CommitReason.BAD_FIELD),
        ("prev", "x", CommitReason.BAD_FIELD),
        ("sig", b"x" * 63, CommitReason.BAD_FIELD),
        ("sig", "x" * 64, CommitReason.BAD_FIELD),
        ("sig", None, CommitReason.BAD_FIELD),
        ("x", "x" * 20_000, CommitReason.UNDECODABLE),
    ],
)
def test_malformed_commits(field: str, value: object, reason: CommitReason) -> None:
    commit = cbrrr.decode_dag_cbor(REPO.blocks[REPO.commit])
    block = cbrrr.encode_dag_cbor(commit | {field: value})
    rejected = parse_commit(block)
    assert isinstance(rejected, CommitRejected)
    assert rejected.reason is reason
    assert refused(REPO, car(cid_of(block), REPO.blocks | {cid_of(block): block})).reason is SnapshotReason.BAD_COMMIT


@settings(max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_fuzz(noise: bytes, at: int) -> None:
    """G7: no commit block, and no repo behind it, raises anything but its typed rejection."""
    good = REPO.blocks[REPO.commit]
    for block in (noise, good[:at] + noise + good[at + len(noise) :]):
        parsed = parse_commit(block)
        assert isinstance(parsed, Commit | CommitRejected)
        index = CarIndex()
        index.feed(car(cid_of(block), REPO.blocks | {cid_of(block): block}))
        if block != good:
            with pytest.raises(SnapshotRejected):
                open_snapshot(index, DID, REPO.key.did_key, None)
