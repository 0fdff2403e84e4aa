"""Inversion of operations on partial trees: what a commit did, taken back, gives the root before it, or a typed reason."""

from __future__ import annotations

import random
from hashlib import sha256

import cbrrr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.cid import DAG_CBOR
from protocol.mst.invert import Change, Unproven, UnprovenReason, invert
from protocol.mst.node import Node, NodeEntry, encode_node, key_layer, parse_node
from protocol.mst.tree import build

keys = st.integers(0, 400).map(lambda n: f"app.bsky.feed.post/3k{n:011d}".encode())
FOREIGN = (
    b"\x01\x55\x12\x20" + bytes(32),
    b"\x01\x71\x13\x40" + bytes(64),
    b"\x01\x55\x00\x03abc",
    b"\x12\x20" + bytes(32),
    b"\x01\x70\x12\x20" + bytes(32),
)
values = st.integers(0, 5).map(lambda n: DAG_CBOR + sha256(b"%d" % n).digest()) | st.sampled_from(FOREIGN)


def tree(leaves: dict[bytes, bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    blocks: dict[bytes, bytes] = {}
    return build(sorted(leaves.items()), blocks.__setitem__), blocks


def changes(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> list[Change]:
    touched = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    return [Change(key, after.get(key), before.get(key)) for key in touched]


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(keys, values, max_size=60), st.dictionaries(keys, values, max_size=60), st.randoms())
def test_any_two_trees_invert_into_each_other(before: dict, after: dict, order: random.Random) -> None:
    """N1: whatever was created, updated and deleted, in any order of the ops, and whatever kind of CID it names."""
    root, _ = tree(before)
    new_root, blocks = tree(after)
    # a commit has the nodes of both trees at hand where it touched them; the rest stays stubs
    _, old_blocks = tree(before)
    done = changes(before, after)
    order.shuffle(done)
    assert invert(new_root, {**old_blocks, **blocks}.get, done) == root


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, values, min_size=1, max_size=60), keys, values)
def test_a_false_claim_is_found(before: dict, key: bytes, value: bytes) -> None:
    """An op whose value is not the tree's, or that hides another, never gives the true root before."""
    root, blocks = tree(before)
    if before.get(key) != value:
        with pytest.raises(Unproven) as caught:
            invert(root, blocks.get, [Change(key, value, None)])
        assert caught.value.reason is UnprovenReason.OP_NOT_IN_TREE
        assert not caught.value.cannot_tell
    else:
        assert (
            invert(root, blocks.get, [Change(key, value, None)])
            == tree({k: v for k, v in before.items() if k != key})[0]
        )


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(keys, values, min_size=20, max_size=80), st.data())
def test_a_missing_block_is_never_a_wrong_verdict(after: dict, data: st.DataObject) -> None:
    """Where proof is missing the answer is 'cannot tell', or it was not needed."""
    root, blocks = tree(after)
    key = data.draw(st.sampled_from(sorted(after)))
    gone = data.draw(st.sampled_from(sorted(blocks)))
    rest = {cid: block for cid, block in blocks.items() if cid != gone}
    before, _ = tree({k: v for k, v in after.items() if k != key})
    try:
        verdict: bytes | Unproven = invert(root, rest.get, [Change(key, after[key], None)])
    except Unproven as err:
        verdict = err
    if isinstance(verdict, Unproven):
        assert (verdict.reason, verdict.cannot_tell) == (UnprovenReason.MISSING_PROOF, True)
    else:
        assert verdict == before


def test_trees_that_grow_and_shrink_by_layers() -> None:
    """The key of the highest layer alone lifts the root, and taking it away lowers it again."""
    ordinary = {f"a.b.c/{n:05d}".encode(): DAG_CBOR + bytes(32) for n in range(50)}
    high = next(key for n in range(100_000) if key_layer(key := f"a.b.c/{n:05d}x".encode()) >= 5)
    root, _ = tree(ordinary)
    raised, blocks = tree({**ordinary, high: DAG_CBOR + bytes(32)})
    assert invert(raised, blocks.get, [Change(high, DAG_CBOR + bytes(32), None)]) == root
    assert invert(root, tree(ordinary)[1].get, [Change(high, None, DAG_CBOR + bytes(32))]) == raised


@pytest.mark.parametrize(
    "value", [b"\x01\x71\x13\x40" + bytes(63), b"\x01\x71\x12\x20" + bytes(33), b"\x02" + bytes(35), b""]
)
def test_a_value_that_is_no_cid_is_a_bad_tree(value: bytes) -> None:
    node = cbrrr.encode_dag_cbor({"e": [{"k": b"a.b.c/x", "p": 0, "t": None, "v": cbrrr.CID(value)}], "l": None})
    with pytest.raises(Unproven) as caught:
        invert(DAG_CBOR + sha256(node).digest(), lambda _: node, [Change(b"a.b.c/x", value, None)])
    assert caught.value.reason is UnprovenReason.BAD_TREE


def test_the_empty_tree() -> None:
    empty, blocks = tree({})
    one, more = tree({b"a.b.c/x": DAG_CBOR + bytes(32)})
    assert invert(one, more.get, [Change(b"a.b.c/x", DAG_CBOR + bytes(32), None)]) == empty
    assert invert(empty, blocks.get, [Change(b"a.b.c/x", None, DAG_CBOR + bytes(32))]) == one
    assert invert(empty, blocks.get, []) == empty


def test_a_delete_without_prev_cannot_be_inverted() -> None:
    root, blocks = tree({b"a.b.c/x": DAG_CBOR + bytes(32)})
    with pytest.raises(Unproven) as caught:
        invert(root, blocks.get, [Change(b"a.b.c/y", None, None)])
    assert caught.value.cannot_tell


def put(blocks: dict[bytes, bytes], node: Node) -> bytes:
    block = encode_node(node)
    cid = DAG_CBOR + sha256(block).digest()
    blocks[cid] = block
    return cid


def misplaced(root: bytes, blocks: dict[bytes, bytes], key: bytes, value: bytes, draw: st.DataObject) -> bytes:
    """The root of the same tree with one more leaf, wherever `draw` says: most of these trees are malformed."""
    node = parse_node(root, blocks[root])
    inner = [node.left, *(entry.tree for entry in node.entries)]
    at = draw.draw(st.integers(0, len(node.entries)))
    below = inner[at]
    if below is not None and draw.draw(st.booleans()):
        inner[at] = misplaced(below, blocks, key, value, draw)
        leaves = list(zip((e.key for e in node.entries), (e.value for e in node.entries), inner[1:], strict=True))
    else:
        empty = put(blocks, Node(None, []))
        before, after = draw.draw(st.sampled_from([(below, None), (None, below), (below, empty), (empty, below)]))
        inner[at : at + 1] = [before, after]
        keys = [e.key for e in node.entries]
        values = [e.value for e in node.entries]
        keys.insert(at, key)
        values.insert(at, value)
        leaves = list(zip(keys, values, inner[1:], strict=True))
    return put(blocks, Node(inner[0], [NodeEntry(*leaf) for leaf in leaves]))


@settings(max_examples=600, deadline=None)
@given(st.dictionaries(keys, values, min_size=1, max_size=30), keys, values, st.data())
def test_a_created_key_in_a_wrong_place_never_inverts_to_the_true_tree(
    before: dict, key: bytes, value: bytes, data: st.DataObject
) -> None:
    """G3: where the inversion gives the root before, the tree after is the one that its leaves allow."""
    before.pop(key, None)
    root, blocks = tree(before)
    wrong = misplaced(root, blocks, key, value, data)
    try:
        result = invert(wrong, blocks.get, [Change(key, value, None)])
    except Unproven:
        return
    true, _ = tree({**before, key: value})
    assert result != root or wrong == true


def key_of(layer: int, after: bytes = b"") -> bytes:
    names = (f"a.b.c/{n:07d}".encode() for n in range(1_000_000))
    return next(name for name in names if name > after and key_layer(name) == layer)


VALUE = DAG_CBOR + bytes(32)


def test_each_way_to_misplace_a_created_key_is_found() -> None:
    """G3: on the wrong side of a neighbour, above its layer, beside an empty node, beside a lower key."""
    low = key_of(0)
    high = key_of(1, low)
    far = key_of(0, high)
    farther = key_of(1, far)
    peak = key_of(2)

    def verdict(before: dict[bytes, bytes], make: object, created: bytes) -> UnprovenReason:
        root, blocks = tree(before)
        wrong = make(root, blocks)  # type: ignore[operator]  # a function of both
        with pytest.raises(Unproven) as caught:
            invert(wrong, blocks.get, [Change(created, VALUE, None)])
        return caught.value.reason

    # `far` stays left of `high`, although it is greater
    def wrong_side(root: bytes, blocks: dict[bytes, bytes]) -> bytes:
        (entry,) = parse_node(root, blocks[root]).entries
        left = parse_node(root, blocks[root]).left
        assert left is not None
        return put(blocks, Node(left, [NodeEntry(high, VALUE, None), NodeEntry(entry.key, entry.value, entry.tree)]))

    assert verdict({low: VALUE, far: VALUE, farther: VALUE}, wrong_side, high) is UnprovenReason.BAD_TREE

    def above_its_layer(root: bytes, blocks: dict[bytes, bytes]) -> bytes:
        return put(blocks, Node(None, [NodeEntry(high, VALUE, None), NodeEntry(far, VALUE, None)]))

    assert verdict({high: VALUE}, above_its_layer, far) is UnprovenReason.BAD_TREE

    def beside_an_empty_node(root: bytes, blocks: dict[bytes, bytes]) -> bytes:
        left = put(blocks, Node(None, [NodeEntry(low, VALUE, None)]))
        return put(blocks, Node(left, [NodeEntry(high, VALUE, put(blocks, Node(None, [])))]))

    assert verdict({low: VALUE}, beside_an_empty_node, high) is UnprovenReason.BAD_TREE

    def beside_a_lower_key(root: bytes, blocks: dict[bytes, bytes]) -> bytes:
        first, second = sorted([(peak, VALUE), (high, VALUE)])
        return put(blocks, Node(None, [NodeEntry(*first, None), NodeEntry(*second, None)]))

    assert verdict({high: VALUE}, beside_a_lower_key, peak) is UnprovenReason.BAD_TREE
