"""Nodes as the proof of a commit reads them: in canonical encoding only."""

from typing import Any

import cbrrr
import pytest

from protocol.mst.branch import parse_branch
from protocol.mst.node import MAX_KEY, MstError, MstReason

CID = cbrrr.CID.cidv1_dag_cbor_sha256_32_from(b"a")
RAW = cbrrr.CID(b"\x01\x55\x12\x20" + bytes(32))
OTHER = cbrrr.CID(b"\x01\x71\x13\x40" + bytes(64))  # DAG-CBOR by SHA-512


def node(*entries: tuple[int, bytes], left: Any = None, tree: Any = None, value: Any = CID) -> bytes:
    listed = [{"p": shared, "k": suffix, "t": tree, "v": value} for shared, suffix in entries]
    return cbrrr.encode_dag_cbor({"l": left, "e": listed})


def test_keys_values_and_subtrees_are_read() -> None:
    long = b"b" * 300
    block = node((0, b"aaaa/" + b"a" * 30), (30, b"b"), (0, long), left=CID, tree=CID, value=OTHER)
    branch = parse_branch(b"", block, 1)
    assert branch.keys == [b"aaaa/" + b"a" * 30, b"aaaa/" + b"a" * 25 + b"b", long]
    assert [bytes(tree) for tree in branch.trees] == [bytes(CID)[-36:]] * 4
    assert branch.values == [bytes(OTHER)[-68:]] * 3
    many = [(0, b"a")] + [(1 + n, b"a") for n in range(99)]
    assert len(parse_branch(b"", node(*many), 0).keys) == 100


GOOD = node((0, b"a.b/c"))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"\xa1" + GOOD[1:], MstReason.BAD_NODE),
        (GOOD + b"\x00", MstReason.BAD_NODE),
        (GOOD[:3] + b"\x98\x01" + GOOD[4:], MstReason.BAD_NODE),
        (GOOD.replace(b"ak", b"ax"), MstReason.BAD_NODE),
        (GOOD.replace(b"al", b"ax"), MstReason.BAD_NODE),
        (GOOD.replace(b"ak\x45", b"ak\x58\x05"), MstReason.BAD_NODE),
        (GOOD.replace(b"ap\x00", b"ap\x18\x00"), MstReason.BAD_NODE),
        (node((0, b"a.b/c"), value="text"), MstReason.BAD_NODE),
        (node((0, b"a.b/c"), tree=RAW), MstReason.BAD_NODE),
        (node((0, b"a.b/c"), left=RAW), MstReason.BAD_NODE),
        (node((0, b"a.b/c"), (0, b"a.b/d")), MstReason.KEY_ORDER),
        (node((0, b"a.b/c"), (4, b"b")), MstReason.KEY_ORDER),
        (node((0, b"a.b/c"), (5, b"")), MstReason.KEY_ORDER),
        (node((0, b"a.b/c"), (6, b"d")), MstReason.BAD_PREFIX),
        (node((0, b"k" * (MAX_KEY + 1))), MstReason.KEY_TOO_LONG),
    ],
    ids=lambda value: value.name if isinstance(value, MstReason) else "node",
)
def test_any_other_encoding_is_refused(block: bytes, reason: MstReason) -> None:
    with pytest.raises(MstError) as refused:
        parse_branch(b"", block, 0)
    assert refused.value.reason is reason


def test_a_node_that_ends_early_is_never_a_node() -> None:
    block = node((0, b"a.b/c"), (4, b"d"), left=CID)
    for end in range(len(block)):
        with pytest.raises((MstError, IndexError)):
            parse_branch(b"", block[:end], 0)
