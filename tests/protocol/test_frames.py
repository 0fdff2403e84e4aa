"""Frames: every kind, and nothing raises."""

from typing import Any

import cbrrr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import event_stream as frames
from protocol.event_stream import FrameReason, Rejected, decode, sequence

CID = cbrrr.CID(b"\x01\x71\x12\x20" + b"c" * 32)
DID = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
TIME = "2024-01-01T00:00:00Z"
COMMIT: dict[str, Any] = {
    "repo": DID,
    "seq": 7,
    "rev": "3kabcdefghijk",
    "since": None,
    "time": TIME,
    "commit": CID,
    "blocks": b"car",
    "ops": [],
    "blobs": [],
    "rebase": False,
    "tooBig": False,
    "prevData": CID,
}


def frame(kind: str | None, body: Any, op: Any = 1) -> bytes:
    header = {"op": op} if kind is None else {"op": op, "t": kind}
    return bytes(cbrrr.encode_dag_cbor(header) + cbrrr.encode_dag_cbor(body))


def test_commit() -> None:
    message = decode(frame("#commit", COMMIT))
    assert isinstance(message, frames.Commit)
    assert (message.seq, message.did, message.rev, message.no_blocks) == (7, DID, "3kabcdefghijk", False)
    assert message.commit == CID.cid_bytes == message.data_before


@pytest.mark.parametrize("flag", ["tooBig", "rebase"])
def test_a_commit_whose_ops_are_null(flag: str) -> None:
    message = decode(frame("#commit", COMMIT | {flag: True}))
    assert isinstance(message, frames.Commit)
    assert message.no_blocks


def test_legacy_commit_without_prev_data() -> None:
    message = decode(frame("#commit", {key: value for key, value in COMMIT.items() if key != "prevData"}))
    assert isinstance(message, frames.Commit)
    assert message.data_before is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repo", "bob"),
        ("repo", 5),
        ("blocks", "text"),
        ("seq", -1),
        ("seq", "7"),
        ("seq", None),
    ],
)
def test_a_commit_with_a_wrong_field_is_refused_by_its_name(field: str, value: Any) -> None:
    """G7"""
    message = decode(frame("#commit", COMMIT | {field: value}))
    assert isinstance(message, Rejected)
    assert (message.reason, message.detail) == (FrameReason.BAD_FIELD, f"#commit: {field}")
    assert message.seq == (None if field == "seq" else 7)
    assert message.did == (None if field == "repo" else DID)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rev", "zzz"),
        ("rev", None),
        ("commit", b"x"),
        ("commit", None),
        ("ops", {}),
        ("since", 5),
        ("since", "not a tid"),
        ("prevData", b"short"),
    ],
)
def test_a_commit_with_a_wrong_unsigned_field_keeps_its_blocks(field: str, value: Any) -> None:
    """H6: what is signed among the blocks is still to be checked. It does not move the cursor's position."""
    body = frame("#commit", COMMIT | {field: value})
    message = decode(body)
    assert isinstance(message, frames.Commit)
    assert (message.wrong_field, message.did, message.seq, message.blocks) == (field, DID, 7, COMMIT["blocks"])
    assert frames.position(body) is None


def test_other_kinds() -> None:
    base = {"did": DID, "seq": 1, "time": TIME}
    assert decode(frame("#identity", base | {"handle": "a.test"})) == frames.Identity(1, DID, TIME, "a.test")
    assert decode(frame("#identity", base)) == frames.Identity(1, DID, TIME, None)
    assert decode(frame("#identity", base | {"handle": "a\0b.test"})) == frames.Identity(1, DID, TIME, None)
    assert decode(frame("#account", base | {"active": False, "status": "deleted"})) == frames.Account(
        1, DID, TIME, False, "deleted"
    )
    assert decode(frame("#sync", base | {"rev": "3kabcdefghijk", "blocks": b""})) == frames.Sync(
        1, DID, "3kabcdefghijk", TIME, b""
    )
    assert decode(frame("#labels", {"seq": 3, "labels": [1]})) == frames.Labels(3, [1])
    assert decode(frame("#info", {"name": "OutdatedCursor"})) == frames.Info("OutdatedCursor", "")
    assert decode(frame("#novelty", {"seq": 9})) == frames.Unknown("#novelty", 9)


def test_error_frames_have_a_negative_op() -> None:
    assert decode(frame(None, {"error": "FutureCursor", "message": "no"}, -1)) == frames.StreamError(
        "FutureCursor", "no"
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", FrameReason.BAD_HEADER),
        (b"\xff" * 40, FrameReason.UNDECODABLE),
        (b"\x81" * 100_000, FrameReason.UNDECODABLE),
        (frame("#commit", COMMIT)[:-1], FrameReason.UNDECODABLE),
        (frame("#commit", [])[:-1] + b"\xa0\xa0", FrameReason.BAD_HEADER),
        (frame("#commit", []), FrameReason.BAD_HEADER),
        (frame("#commit", COMMIT, 2), FrameReason.BAD_HEADER),
        (frame("#commit", COMMIT, True), FrameReason.BAD_HEADER),
        (frame(None, COMMIT), FrameReason.BAD_HEADER),
        (b"\x00" * (frames.MAX_FRAME_BYTES + 1), FrameReason.TOO_LARGE),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, reason: FrameReason) -> None:
    """G7, G9"""
    message = decode(data)
    assert isinstance(message, Rejected)
    assert message.reason is reason


def test_sequence_is_read_from_any_kind() -> None:
    assert sequence(frame("#commit", COMMIT)) == 7
    assert sequence(frame("#novelty", {"seq": 8})) == 8
    assert sequence(frame("#info", {"name": "x"})) is None
    assert sequence(b"\xff") is None


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.sampled_from(["#commit", "#sync", "#identity", "#account", "#labels", "#info", "#x"]),
    st.dictionaries(
        st.sampled_from([*COMMIT, "did", "active", "status", "handle", "labels", "name", "message"]), values
    ),
    st.sampled_from([1, -1, 0]),
)
def test_no_body_raises(kind: str, body: dict[str, Any], op: int) -> None:
    """G7"""
    decode(frame(kind, body, op))


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    """G7"""
    decode(data)
    sequence(data)
