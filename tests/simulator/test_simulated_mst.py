"""The simulator's tree: compared with published roots; bulk building compared with single changes."""

from __future__ import annotations

import random

import libipld
import pytest
from cbrrr import CID, decode_dag_cbor, encode_dag_cbor

from simulator.repo import mst
from simulator.repo.car import cid_of, cid_text

LEAF = bytes(CID.decode("bafyreie5cvv4h45feadgeuwhbcutmh6t2ceseocckahdoe6uat64zmz454"))


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
def test_roots_equal_the_published_interoperability_vectors(rkeys: list[str], root: str) -> None:
    keys = [f"com.example.record/{rkey}".encode() for rkey in rkeys]
    tree = mst.build(keys, [LEAF] * len(keys))
    mst.seal(tree)
    assert cid_text(tree.cid) == root
    tree = mst.empty_tree()
    for key in reversed(keys):
        tree = mst.put(tree, key, LEAF)
    mst.seal(tree)
    assert cid_text(tree.cid) == root


def make_entries(rng: random.Random, count: int) -> dict[bytes, bytes]:
    collections = ("app.bsky.feed.like", "app.bsky.feed.post", "com.example.a")
    keys = {f"{rng.choice(collections)}/{rng.randrange(10**6)}".encode() for _ in range(count)}
    return {key: cid_of(key) for key in keys}


def sealed_root(entries: dict[bytes, bytes]) -> bytes:
    keys = sorted(entries)
    tree = mst.build(keys, [entries[key] for key in keys])
    mst.seal(tree)
    return tree.cid


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_changes_gives_the_tree_that_bulk_building_gives(seed: int) -> None:
    rng = random.Random(seed)
    entries = make_entries(rng, rng.choice((1, 2, 5, 60, 700)))
    tree = mst.empty_tree()
    order = list(entries)
    rng.shuffle(order)
    for key in order:
        tree = mst.put(tree, key, entries[key])
    mst.seal(tree)
    assert tree.cid == sealed_root(entries)
    rng.shuffle(order)
    while order:
        for key in [order.pop() for _ in range(max(1, len(order) // 2))]:
            tree = mst.remove(tree, key)
            del entries[key]
        mst.seal(tree)
        assert tree.cid == sealed_root(entries)
    assert tree.keys == ()


def test_node_bytes_are_canonical_dag_cbor() -> None:
    entries = make_entries(random.Random(3), 3000)
    tree = mst.build(sorted(entries), [entries[key] for key in sorted(entries)])
    for cid, block in mst.seal(tree):
        assert encode_dag_cbor(decode_dag_cbor(block)) == block
        assert set(libipld.decode_dag_cbor(block)) == {"e", "l"}
        assert cid == cid_of(block)


def test_removing_a_missing_key_is_an_error() -> None:
    with pytest.raises(KeyError):
        mst.remove(mst.put(mst.empty_tree(), b"a/b", LEAF), b"a/c")
