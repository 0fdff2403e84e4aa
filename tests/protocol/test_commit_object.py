"""Commit objects: their syntax, and exactly what is signed."""

import cbrrr
import pytest

from protocol.commit import (
    CommitObject,
    CommitReason,
    CommitRejected,
    parse_commit,
    usual_commit,
    usual_signature,
    verify_commit,
)
from protocol.snapshot import (
    SnapshotReason,
)
from tests.protocol.snapshots_of import REPO, refused
from tests.support.tiny_repo import DID, REV, car, cid_of, sample


def test_commits() -> None:
    commit = parse_commit(REPO.blocks[REPO.commit])
    assert isinstance(commit, CommitObject)
    assert (commit.did, commit.rev, commit.data, commit.prev, commit.version) == (DID, REV, REPO.data, None, 3)
    assert verify_commit(commit, REPO.key.did_key)
    assert not verify_commit(commit, "nonsense")


def test_what_is_signed_is_kept_exactly() -> None:
    """`prev: null`, a present prev, an absent one, and fields nobody knows yet: each is part of the signed bytes."""
    for overrides in ({"prev": None}, {"prev": cbrrr.CID(REPO.commit)}, {"future": [1, {"a": b"x"}]}):
        repo = sample(2, overrides=overrides)
        commit = parse_commit(repo.blocks[repo.commit])
        assert isinstance(commit, CommitObject)
        assert verify_commit(commit, repo.key.did_key)
    value = cbrrr.decode_dag_cbor(REPO.blocks[REPO.commit])
    del value["prev"]
    commit = parse_commit(cbrrr.encode_dag_cbor(value))
    assert isinstance(commit, CommitObject)
    assert not verify_commit(commit, REPO.key.did_key)  # the null was signed, and is gone


@pytest.mark.parametrize("did", [DID, "did:web:" + "a" * 10, "did:plc:" + "a" * 300])
def test_a_usual_commit_follows_from_its_fields(did: str) -> None:
    repo = sample(2, did=did)
    block = repo.blocks[repo.commit]
    sig = usual_signature(block, did, REV, repo.data)
    assert sig == cbrrr.decode_dag_cbor(block)["sig"]
    assert usual_commit(did, REV, repo.data, sig) == block


def test_an_unusual_commit_does_not_follow_from_its_fields() -> None:
    """Another row, another field, no prev, a prev, or bytes of another kind."""
    block = REPO.blocks[REPO.commit]
    for fields in ((DID + "x", REV, REPO.data), (DID, "3l22222222222", REPO.data), (DID, REV, REPO.commit)):
        assert usual_signature(block, *fields) is None
    value = cbrrr.decode_dag_cbor(block)
    without_prev = {name: one for name, one in value.items() if name != "prev"}
    for other in (
        value | {"prev": cbrrr.CID(REPO.commit)},
        value | {"future": 1},
        value | {"version": 4},
        without_prev,
    ):
        assert usual_signature(cbrrr.encode_dag_cbor(other), DID, REV, REPO.data) is None
    for at in range(len(block)):
        assert usual_signature(block[:at], DID, REV, REPO.data) is None


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
