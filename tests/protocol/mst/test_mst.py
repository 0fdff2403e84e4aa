"""The Merkle search tree: whatever walks to its end is the one tree of its leaves."""

import contextlib
import random

import cbrrr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.cid import cid_bytes, cid_str
from protocol.mst.node import encode_node, parse_node
from protocol.mst.tree import MstError, MstReason, build, key_layer, prove, walk
from tests.support.tiny_repo import cid_of, layer, put, tree

VALUE = cid_bytes("bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454")
PATHS = st.builds(
    "{}/{}".format,
    st.sampled_from(["app.bsky.feed.post", "app.bsky.feed.like", "a.b.c"]),
    st.text("abc234", min_size=1, max_size=6),
)
LEAVES = st.dictionaries(PATHS, st.binary(max_size=4).map(cid_of), max_size=60)


def leaves_of(count: int) -> dict[str, bytes]:
    return {f"app.bsky.feed.post/3k{at:06d}": cid_of(b"%d" % at) for at in range(count)}


def walked(root: bytes, blocks: dict[bytes, bytes]) -> list[tuple[str, bytes]]:
    return list(walk(root, blocks.get))


def reason_of(root: bytes, blocks: dict[bytes, bytes]) -> MstReason:
    with pytest.raises(MstError) as caught:
        walked(root, blocks)
    return caught.value.reason


@pytest.mark.parametrize(
    ("key", "expected"),
    [("2653ae71", 0), ("blue", 1), ("app.bsky.feed.post/454397e440ec", 4), ("app.bsky.feed.post/9adeb165882c", 8)],
)
def test_layers_of_the_specification(key: str, expected: int) -> None:
    assert key_layer(key.encode()) == expected == layer(key.encode())


@pytest.mark.parametrize(
    ("rkeys", "root"),
    [
        ([], "bafyreie5737gdxlw5i64vzichcalba3z2v5n6icifvx5xytvske7mr3hpm"),
        (["3jqfcqzm3fo2j"], "bafyreibj4lsc3aqnrvphp5xmrnfoorvru4wynt6lwidqbm2623a6tatzdu"),
        (["3jqfcqzm3fx2j"], "bafyreih7wfei65pxzhauoibu3ls7jgmkju4bspy4t2ha2qdjnzqvoy33ai"),
        (
            ["3jqfcqzm3fp2j", "3jqfcqzm3fr2j", "3jqfcqzm3fs2j", "3jqfcqzm3ft2j", "3jqfcqzm4fc2j"],
            "bafyreicmahysq4n6wfuxo522m6dpiy7z7qzym3dzs756t5n7nfdgccwq7m",
        ),
    ],
)
def test_known_roots(rkeys: list[str], root: str) -> None:
    """The vectors that the reference implementations share."""
    leaves = {f"com.example.record/{rkey}": VALUE for rkey in rkeys}
    blocks: dict[bytes, bytes] = {}
    assert cid_str(build(sorted(leaves.items()), blocks.__setitem__)) == root
    assert cid_str(tree(leaves, {})) == root
    assert walked(cid_bytes(root), blocks) == sorted(leaves.items())


@settings(max_examples=200)
@given(LEAVES)
def test_build_and_walk_are_inverse(leaves: dict[str, bytes]) -> None:
    independent: dict[bytes, bytes] = {}
    root = tree(leaves, independent)
    built: dict[bytes, bytes] = {}
    assert build(sorted(leaves.items()), built.__setitem__) == root
    assert built == independent
    assert walked(root, built) == sorted(leaves.items())
    for cid, block in built.items():
        assert encode_node(parse_node(cid, block)) == block


def test_a_large_tree() -> None:
    leaves = leaves_of(20_000)
    blocks: dict[bytes, bytes] = {}
    root = build(leaves.items(), blocks.__setitem__)
    assert root == tree(leaves, {})
    assert walked(root, blocks) == list(leaves.items())


def looked_up(root: bytes, blocks: dict[bytes, bytes], key: bytes) -> tuple[bytes | None, set[bytes]]:
    """The value that a proof shows for a key, and the nodes on the way. KeyError if the proof lacks one of them."""
    seen: set[bytes] = set()
    link = cbrrr.CID(root)
    while link is not None:
        seen.add(link.cid_bytes)
        node = cbrrr.decode_dag_cbor(blocks[link.cid_bytes])
        link, full = node["l"], b""
        for one in node["e"]:
            full = full[: one["p"]] + one["k"]
            if full == key:
                return one["v"].cid_bytes, seen
            if full > key:
                break
            link = one["t"]
    return None, seen


@settings(max_examples=50)
@given(LEAVES, PATHS)
def test_a_proof_shows_what_a_key_has_or_that_it_is_absent(leaves: dict[str, bytes], other: str) -> None:
    sorted_leaves = [(path.encode(), value) for path, value in sorted(leaves.items())]
    whole: dict[bytes, bytes] = {}
    root = tree(leaves, whole)
    height = max((layer(key) for key, _ in sorted_leaves), default=0)
    for path in (*[*leaves][:5], other, "a", "zz"):
        proven, nodes = prove(sorted_leaves, path.encode())
        blocks = {cid_of(node): node for node in nodes}
        value, needed = looked_up(root, blocks, path.encode())
        assert (proven, value) == (root, leaves.get(path))
        assert needed <= blocks.keys() <= whole.keys()
        assert len(nodes) <= height + 1


def test_a_proof_of_a_large_tree_has_few_nodes() -> None:
    leaves = [(path.encode(), value) for path, value in leaves_of(20_000).items()]
    root, nodes = prove(leaves, leaves[12_345][0])
    value, needed = looked_up(root, {cid_of(node): node for node in nodes}, leaves[12_345][0])
    assert value == leaves[12_345][1]
    assert len(needed) <= len(nodes) < 12


def test_every_missing_node_is_found() -> None:
    leaves = leaves_of(400)
    blocks: dict[bytes, bytes] = {}
    root = tree(leaves, blocks)
    assert len(blocks) > 50
    for cid in blocks:
        with pytest.raises(MstError) as caught:
            walked(root, {c: b for c, b in blocks.items() if c != cid})
        assert (caught.value.reason, caught.value.cid) == (MstReason.MISSING_BLOCK, cid)


def test_build_refuses_leaves_out_of_order() -> None:
    for paths in (["a.b.c/2", "a.b.c/1"], ["a.b.c/1", "a.b.c/1"], [""]):
        with pytest.raises(MstError) as caught:
            build((path, VALUE) for path in paths)
        assert caught.value.reason is MstReason.KEY_ORDER


def keys_of_layer(height: int, count: int) -> list[bytes]:
    found = sorted(key for at in range(5000) if layer(key := b"a.b.c/%05d" % at) == height)
    assert len(found) >= count
    return found[:count]


def entry(
    key: bytes, previous: bytes = b"", subtree: bytes | None = None, shared: int | None = None
) -> dict[str, object]:
    if shared is None:
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
    return {"k": key[shared:], "p": shared, "v": cbrrr.CID(VALUE), "t": subtree and cbrrr.CID(subtree)}


def node(
    entries: list[object], left: bytes | None = None, blocks: dict[bytes, bytes] | None = None
) -> tuple[bytes, dict[bytes, bytes]]:
    blocks = {} if blocks is None else blocks
    return put({"e": entries, "l": left and cbrrr.CID(left)}, blocks), blocks


A, B, C = keys_of_layer(0, 3)
HIGH = next(key for key in keys_of_layer(1, 200) if key > C)
HIGHER = next(key for key in keys_of_layer(2, 20) if key > C)


def test_a_swapped_order_is_found() -> None:
    assert walked(*node([entry(A), entry(B, A)])) == [(A.decode(), VALUE), (B.decode(), VALUE)]
    assert reason_of(*node([entry(B), entry(A, B)])) is MstReason.KEY_ORDER
    assert reason_of(*node([entry(A), entry(A, A)])) is MstReason.KEY_ORDER


def test_order_holds_across_nodes() -> None:
    low, blocks = node([entry(A)])
    assert len(walked(*node([entry(HIGH)], low, blocks))) == 2
    low, blocks = node([entry(A)])
    assert reason_of(*node([entry(HIGH, subtree=low)], None, blocks)) is MstReason.KEY_ORDER
    low, blocks = node([entry(A)])  # the same subtree on both sides
    assert reason_of(*node([entry(HIGH, subtree=low)], low, blocks)) is MstReason.KEY_ORDER


def test_a_key_in_a_wrong_layer_is_found() -> None:
    assert reason_of(*node([entry(A), entry(HIGH, A)])) is MstReason.KEY_LAYER
    low, blocks = node([entry(A)])
    assert (
        reason_of(*node([entry(HIGHER)], low, blocks)) is MstReason.KEY_LAYER
    )  # the node of the layer between is left out
    low, blocks = node([entry(A)])
    assert reason_of(*node([entry(C)], low, blocks)) is MstReason.KEY_LAYER  # below the lowest
    for place in ("left", "between", "right"):
        lowest, blocks = node([entry(A)])
        entries = [
            entry(B, subtree=lowest if place == "between" else None),
            entry(C, B, lowest if place == "right" else None),
        ]
        low, blocks = node(entries, lowest if place == "left" else None, blocks)
        assert reason_of(*node([entry(HIGH)], low, blocks)) is MstReason.KEY_LAYER


def test_the_layer_between_may_have_no_keys() -> None:
    low, blocks = node([entry(A)])
    between, blocks = node([], low, blocks)
    assert len(walked(*node([entry(HIGHER)], between, blocks))) == 2


def test_empty_nodes_are_found() -> None:
    low, blocks = node([entry(A)])
    assert reason_of(*node([], low, blocks)) is MstReason.EMPTY_NODE  # a root that should have been trimmed
    empty, blocks = node([])
    assert reason_of(*node([entry(HIGH)], empty, blocks)) is MstReason.EMPTY_NODE
    empty, blocks = node([])
    assert reason_of(*node([entry(HIGHER)], empty, blocks)) is MstReason.EMPTY_NODE


def test_prefixes_must_be_the_longest() -> None:
    assert reason_of(*node([entry(A), entry(B, A, shared=3)])) is MstReason.BAD_PREFIX
    assert reason_of(*node([entry(A), {**entry(B, A), "p": 5000}])) is MstReason.BAD_PREFIX
    assert reason_of(*node([{**entry(A), "p": 1}])) is MstReason.BAD_PREFIX
    assert reason_of(*node([{**entry(A), "p": -1}])) is MstReason.BAD_PREFIX
    assert reason_of(*node([{**entry(A), "k": b""}])) is MstReason.KEY_ORDER


def test_prefixes_cannot_blow_up_keys() -> None:
    """G9: a node of 100 kB that asks for gigabytes of keys."""
    entries = [entry(b"a" * 1000)] + [{**entry(A), "k": b"b" * 25, "p": 1000 + at} for at in range(1000)]
    assert reason_of(*node(entries)) is MstReason.KEY_TOO_LONG


@pytest.mark.parametrize(
    "value",
    [
        5,
        [],
        {},
        {"e": []},
        {"l": None},
        {"e": [], "l": None, "x": 1},
        {"e": {}, "l": None},
        {"e": [5], "l": None},
        {"e": [{}], "l": None},
        {"e": [{**entry(A), "x": 1}], "l": None},
        {"e": [{**entry(A), "p": True}], "l": None},
        {"e": [{**entry(A), "p": 2**63}], "l": None},
        {"e": [{**entry(A), "k": "text"}], "l": None},
        {"e": [{**entry(A), "v": VALUE}], "l": None},
        {"e": [{**entry(A), "v": None}], "l": None},
        {"e": [{**entry(A), "v": cbrrr.CID(b"\x01\x71\x00\x02x")}], "l": None},
        {"e": [{**entry(A), "v": cbrrr.CID(b"\x01\x71\x00\x01xy")}], "l": None},
        {"e": [{**entry(A), "v": b"\x01\x71\x00\x01x"}], "l": None},
        {"e": [{**entry(A), "t": VALUE}], "l": None},
        {"e": [{**entry(A), "t": 5}], "l": None},
        {"e": [{**entry(A), "t": cbrrr.CID(b"\x01\x55\x12\x20" + bytes(32))}], "l": None},
        {"e": [entry(A)], "l": VALUE},
        {"e": [entry(A)], "l": "x"},
    ],
)
def test_malformed_nodes(value: object) -> None:
    blocks: dict[bytes, bytes] = {}
    assert reason_of(put(value, blocks), blocks) in (MstReason.BAD_NODE, MstReason.BAD_PREFIX)


def test_spellings_that_are_not_canonical_are_found() -> None:
    _, blocks = node([entry(A), entry(B, A)])
    (block,) = blocks.values()
    long_p = block.replace(b"\x61p\x00", b"\x61p\x18\x00")
    bytes_for_link = block.replace(b"\xd8\x2a\x58\x25\x00" + VALUE, b"\x58\x24" + VALUE, 1)
    padded = block.replace(b"\xd8\x2a\x58\x25\x00" + VALUE, b"\x5a\x00\x00\x00\x24" + VALUE, 1)
    for damaged in (long_p, bytes_for_link, padded, block + b"\x00", block[:-1]):
        assert damaged != block
        assert reason_of(cid_of(damaged), {cid_of(damaged): damaged}) is MstReason.BAD_NODE


def test_a_key_that_is_no_text_is_walked_and_recognisable() -> None:
    key = next(k for at in range(100) if layer(k := b"a.b.c/\xff%d" % at) == 0)
    ((path, _),) = walked(*node([entry(key)]))
    assert path.startswith("a.b.c/\xff")


@settings(max_examples=300)
@given(st.binary(max_size=120))
def test_fuzz(block: bytes) -> None:
    """G7: no block raises anything but MstError."""
    for data in (block, b"\xa2\x61e\x81\xa4\x61k" + block, b"\xa2\x61e\x80\x61l" + block):
        with contextlib.suppress(MstError):
            walked(cid_of(data), {cid_of(data): data})


def test_damaged_nodes_never_pass_for_other_leaves() -> None:
    """Each single changed byte in a node is an MstError, or leaves another valid tree (a changed value CID or key)."""
    leaves = dict(list(leaves_of(12).items()))
    blocks: dict[bytes, bytes] = {}
    root = tree(leaves, blocks)
    noise = random.Random(3)
    refused = 0
    for cid, block in blocks.items():
        for at in range(len(block)):
            damaged = bytearray(block)
            damaged[at] ^= noise.randrange(1, 256)
            try:
                got = walked(root, blocks | {cid: bytes(damaged)})
            except MstError:
                refused += 1
            else:
                again: dict[bytes, bytes] = {}
                build(((path.encode("latin-1"), value) for path, value in got), again.__setitem__)
                assert bytes(damaged) in again.values()
    assert refused > 100
