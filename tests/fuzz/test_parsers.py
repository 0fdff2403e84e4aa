"""Every parser of bytes from strangers, under damaged real input: a value or a typed refusal, never another exception."""

from __future__ import annotations

import random
from typing import Any

import cbrrr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.firehose.encode import commit_message
from protocol.car import index_bytes
from protocol.car_format import CarError
from protocol.commit import CommitObject, CommitRejected, parse_commit
from protocol.encoding.record_json import record_body
from protocol.event_stream import Commit, Message, Rejected, Sync, decode
from protocol.labels import Label, LabelRejected, label_signed, parse_label
from protocol.mst.invert import Change, Unproven, invert
from protocol.mst.node import MstError, parse_node
from protocol.syntax import tid_micros
from protocol.verify_commit import Refused, Verified, signed, verify
from tests.support.tiny_repo import DID, Key, Repo, sample

KEY = Key()
REPO = sample(12, key=KEY)
NOW = tid_micros(REPO.rev) + 1_000_000


def frame(repo: Repo) -> bytes:
    body: dict[str, Any] = {
        "seq": 7,
        "repo": repo.did,
        "commit": cbrrr.CID(repo.commit),
        "rev": repo.rev,
        "since": None,
        "blocks": repo.car(),
        "ops": [{"action": "create", "path": path, "cid": cbrrr.CID(cid)} for path, cid in repo.leaves.items()],
        "prevData": cbrrr.CID(Repo({}).data),
        "tooBig": False,
        "rebase": False,
        "blobs": [],
        "time": "2026-01-01T00:00:00.000Z",
    }
    return cbrrr.encode_dag_cbor({"op": 1, "t": "#commit"}) + cbrrr.encode_dag_cbor(body)


def labels_frame() -> bytes:
    bare = {"ver": 1, "src": DID, "uri": f"at://{DID}/a.b.c/x", "val": "spam", "cts": "2026-01-01T00:00:00Z"}
    one = {**bare, "sig": KEY.sign(cbrrr.encode_dag_cbor(bare))}
    return cbrrr.encode_dag_cbor({"op": 1, "t": "#labels"}) + cbrrr.encode_dag_cbor({"seq": 3, "labels": [one]})


FRAMES = [frame(REPO), frame(sample(1, key=KEY)), labels_frame()]
NODES = [REPO.blocks[cid] for cid in REPO.nodes]
BLOCKS = [*NODES, *(REPO.blocks[cid] for cid in REPO.leaves.values()), REPO.blocks[REPO.commit]]


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """Real bytes with pieces cut, flipped, doubled, swapped or replaced by heads of CBOR that promise much."""
    data = bytearray(draw(st.sampled_from(whole)))
    rng = draw(st.randoms(use_true_random=False))
    for _ in range(draw(st.integers(1, 6))):
        damage(data, rng)
    return bytes(data)


def damage(data: bytearray, rng: random.Random) -> None:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 1, 2, 4, 9, 40))
    match rng.randrange(5):
        case 0:
            data[at : at + size] = rng.randbytes(size)
        case 1:
            del data[at : at + size]
        case 2:
            data[at:at] = data[at : at + size * 4]
        case 3:
            heads = (
                b"\x9b\xff\xff\xff\xff",
                b"\xbb\x7f",
                b"\x5b\0\0\0\xff",
                b"\x81" * 600,
                b"\xd8\x2a",
                b"\xf9\x7e\0",
                b"\xfb",
            )
            data[at : at + size] = rng.choice(heads)
        case _:
            if at < len(data):
                data[at] ^= 1 << rng.randrange(8)


def through(data: bytes) -> None:
    """All that happens to a frame before it is a message."""
    message = decode(data)
    assert isinstance(message, Message)
    if isinstance(message, Commit | Sync):
        result = verify(message, NOW)
        assert isinstance(result, Verified | Refused)
        if isinstance(result, Verified):
            signed(result, KEY.did_key)
            assert commit_message(result, "relay", "2026-01-01T00:00:00.000Z").value
    elif not isinstance(message, Rejected) and hasattr(message, "labels"):
        for value in message.labels:
            made = parse_label(value)
            assert isinstance(made, Label | LabelRejected)
            if isinstance(made, Label):
                label_signed(value, KEY.did_key)


@settings(max_examples=1500, deadline=None)
@given(damaged(FRAMES))
def test_a_damaged_frame(data: bytes) -> None:
    """G7, G9"""
    through(data)


@settings(max_examples=1000, deadline=None)
@given(damaged(FRAMES))
def test_no_damaged_snapshot_passes_as_signed(data: bytes) -> None:
    """N1: what still verifies in full says exactly what was signed."""
    message = decode(data)
    if isinstance(message, Commit) and isinstance(result := verify(message, NOW), Verified):
        assert not signed(result, KEY.did_key) or result.data in {REPO.data, sample(1).data}
        if result.ops is not None and result.data == REPO.data and result.data_before == Repo({}).data:
            told = {f"{op.collection}/{op.rkey}": op.cid for op in result.ops}
            assert told == REPO.leaves


@settings(max_examples=1000, deadline=None)
@given(damaged(BLOCKS))
def test_a_damaged_block(data: bytes) -> None:
    """G7: as a commit, as a node of a tree, as a record."""
    assert isinstance(parse_commit(data), CommitObject | CommitRejected)
    assert record_body(data)
    try:
        parse_node(b"", data)
    except MstError:
        strict = False
    else:
        strict = True
    # the firehose's own reader of nodes takes nothing that the strict one refuses
    try:
        invert(REPO.data, {REPO.data: data}.get, [Change(b"a.b.c/nowhere", None, REPO.data)])
    except Unproven:
        return
    assert strict


@settings(max_examples=500, deadline=None)
@given(damaged([REPO.car()]))
def test_a_damaged_car(data: bytes) -> None:
    """G7"""
    try:
        index_bytes(data)
    except CarError:
        return


@pytest.mark.parametrize("depth", [10, 1000, 100_000])
def test_depth_is_bounded(depth: int) -> None:
    """G9"""
    for open_, close in ((b"\x81", b"\0"), (b"\xa1\x61a", b"\0")):
        through(open_ * depth + close)
        assert record_body(open_ * depth + close)
