"""The Merkle search tree (MST) of a repository: persistent nodes, built in bulk or changed one key at a time.

A change copies the nodes from the root to the key and shares all others, so that an old root remains a complete tree. `seal`
gives nodes their CID and bytes, and returns exactly the nodes that are new since the last seal. Keys are the ASCII bytes of
`collection/rkey`; values are record CIDs (36 bytes, or more for some leaves of `odd_leaves`).
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from simulator.repo.car import CID_PREFIX, Block

_LINK = b"\xd8\x2a\x58\x25\x00"  # tag 42, byte string of 37, the identity multibase prefix
_UINT = [bytes([n]) if n < 24 else bytes([0x18, n]) for n in range(256)]


class TreeNode:
    """One tree node: n keys, n values and n + 1 subtrees of the layer below, or None. `cid` is empty until sealed."""

    __slots__ = ("block", "cid", "keys", "layer", "trees", "values")

    def __init__(
        self, layer: int, keys: tuple[bytes, ...], values: tuple[bytes, ...], trees: "tuple[TreeNode | None, ...]"
    ) -> None:
        self.layer = layer
        self.keys = keys
        self.values = values
        self.trees = trees
        self.cid = b""
        self.block = b""


def empty_tree() -> TreeNode:
    """The tree of an empty repository."""
    return TreeNode(0, (), (), (None,))


def key_layer(key: bytes) -> int:
    """The layer of a key: half the number of leading zero bits of its SHA-256, rounded down."""
    digest = hashlib.sha256(key).digest()
    first = digest[0]
    if first:
        return (8 - first.bit_length()) >> 1
    return (256 - int.from_bytes(digest, "big").bit_length()) >> 1


# --- sealing: CIDs and bytes


def seal(root: TreeNode) -> list[Block]:
    """Give every new node its CID and bytes. Returns the blocks of these nodes, children first. root.cid is the data CID."""
    made: list[Block] = []
    _seal(root, made)
    return made


def _seal(node: TreeNode, made: list[Block]) -> None:
    if node.cid:
        return
    for tree in node.trees:
        if tree is not None:
            _seal(tree, made)
    node.block = block = _encode(node)
    node.cid = CID_PREFIX + hashlib.sha256(block).digest()
    made.append((node.cid, block))


def _encode(node: TreeNode) -> bytes:
    """DAG-CBOR of {"e": [{"k", "p", "t", "v"}], "l"}, map keys in canonical order."""
    count = len(node.keys)
    parts = [b"\xa2\x61e", _array_head(count)]
    previous = b""
    trees = node.trees
    for i in range(count):
        key = node.keys[i]
        shared = _shared_prefix(previous, key)
        suffix = key[shared:]
        parts += (b"\xa4\x61k", _bytes_head(len(suffix)), suffix, b"\x61p", _uint(shared), b"\x61t")
        right = trees[i + 1]
        if right is None:
            parts.append(b"\xf6\x61v")
        else:
            parts += (_LINK, right.cid, b"\x61v")
        value = node.values[i]
        parts += (_LINK if len(value) == 36 else b"\xd8\x2a" + _bytes_head(len(value) + 1) + b"\0", value)
        previous = key
    left = trees[0]
    parts.append(b"\x61l\xf6" if left is None else b"\x61l" + _LINK + left.cid)
    return b"".join(parts)


def _shared_prefix(a: bytes, b: bytes) -> int:
    size = min(len(a), len(b))
    difference = int.from_bytes(a[:size], "big") ^ int.from_bytes(b[:size], "big")
    return size - ((difference.bit_length() + 7) >> 3)


def _uint(number: int) -> bytes:
    return _UINT[number] if number < 256 else b"\x19" + number.to_bytes(2, "big")


def _bytes_head(size: int) -> bytes:
    if size < 24:
        return bytes([0x40 | size])
    return bytes([0x58, size]) if size < 256 else b"\x59" + size.to_bytes(2, "big")


def _array_head(size: int) -> bytes:
    if size < 24:
        return bytes([0x80 | size])
    return bytes([0x98, size]) if size < 256 else b"\x99" + size.to_bytes(2, "big")


# --- building in bulk


def build(keys: Sequence[bytes], values: Sequence[bytes]) -> TreeNode:
    """The unsealed tree of sorted, distinct keys, built in one pass from left to right."""
    layers: list[tuple[list[bytes], list[bytes], list[TreeNode | None]]] = [([], [], [])]
    for key, value in zip(keys, values, strict=True):
        depth = key_layer(key)
        while len(layers) <= depth:
            layers.append(([], [], []))
        below: TreeNode | None = None
        for layer in range(depth):
            below = _close(layers, layer, below)
        open_keys, open_values, open_trees = layers[depth]
        open_trees.append(below)
        open_keys.append(key)
        open_values.append(value)
    root: TreeNode | None = None
    for layer in range(len(layers)):
        root = _close(layers, layer, root)
    return root if root is not None else empty_tree()


def _close(
    layers: list[tuple[list[bytes], list[bytes], list[TreeNode | None]]], layer: int, below: TreeNode | None
) -> TreeNode | None:
    keys, values, trees = layers[layer]
    if not keys and below is None:
        return None
    node = TreeNode(layer, tuple(keys), tuple(values), (*trees, below))
    layers[layer] = ([], [], [])
    return node


# --- changing one key


def put(root: TreeNode, key: bytes, value: bytes) -> TreeNode:
    """The tree with this key set to this value."""
    layer = key_layer(key)
    if not root.keys and root.trees[0] is None:
        return TreeNode(layer, (key,), (value,), (None, None))
    if layer > root.layer:
        left, right = _split(root, key)
        for between in range(root.layer + 1, layer):
            left = left and TreeNode(between, (), (), (left,))
            right = right and TreeNode(between, (), (), (right,))
        return TreeNode(layer, (key,), (value,), (left, right))
    return _put(root, key, value, layer)


def _put(node: TreeNode, key: bytes, value: bytes, layer: int) -> TreeNode:
    keys, values, trees = node.keys, node.values, node.trees
    at = bisect_left(keys, key)
    if layer == node.layer:
        if at < len(keys) and keys[at] == key:
            return TreeNode(layer, keys, (*values[:at], value, *values[at + 1 :]), trees)
        left, right = _split(trees[at], key)
        return TreeNode(
            layer,
            (*keys[:at], key, *keys[at:]),
            (*values[:at], value, *values[at:]),
            (*trees[:at], left, right, *trees[at + 1 :]),
        )
    below = trees[at]
    if below is None:
        below = TreeNode(layer, (key,), (value,), (None, None))
        for between in range(layer + 1, node.layer):
            below = TreeNode(between, (), (), (below,))
    else:
        below = _put(below, key, value, layer)
    return TreeNode(node.layer, keys, values, (*trees[:at], below, *trees[at + 1 :]))


def _split(node: TreeNode | None, key: bytes) -> tuple[TreeNode | None, TreeNode | None]:
    if node is None:
        return None, None
    at = bisect_left(node.keys, key)
    below_left, below_right = _split(node.trees[at], key)
    left = right = None
    if at or below_left is not None:
        left = TreeNode(node.layer, node.keys[:at], node.values[:at], (*node.trees[:at], below_left))
    if at < len(node.keys) or below_right is not None:
        right = TreeNode(node.layer, node.keys[at:], node.values[at:], (below_right, *node.trees[at + 1 :]))
    return left, right


def remove(root: TreeNode, key: bytes) -> TreeNode:
    """The tree without this key. Raises KeyError if the key does not exist."""
    node = _remove(root, key)
    while node is not None and not node.keys and node.trees[0] is not None:
        node = node.trees[0]  # the root of a tree has keys
    return node if node is not None and node.keys else empty_tree()


def _remove(node: TreeNode, key: bytes) -> TreeNode | None:
    keys, values, trees = node.keys, node.values, node.trees
    at = bisect_left(keys, key)
    if at < len(keys) and keys[at] == key:
        joined = _merge(trees[at], trees[at + 1])
        if len(keys) == 1 and joined is None:
            return None
        return TreeNode(
            node.layer,
            keys[:at] + keys[at + 1 :],
            values[:at] + values[at + 1 :],
            (*trees[:at], joined, *trees[at + 2 :]),
        )
    below = trees[at]
    if below is None:
        raise KeyError(key)
    below = _remove(below, key)
    if below is None and not keys:
        return None
    return TreeNode(node.layer, keys, values, (*trees[:at], below, *trees[at + 1 :]))


def _merge(left: TreeNode | None, right: TreeNode | None) -> TreeNode | None:
    if left is None or right is None:
        return left if right is None else right
    joined = _merge(left.trees[-1], right.trees[0])
    return TreeNode(
        left.layer,
        left.keys + right.keys,
        left.values + right.values,
        (*left.trees[:-1], joined, *right.trees[1:]),
    )


# --- reading


def nodes(root: TreeNode) -> Iterator[TreeNode]:
    """Every node, parents before children."""
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(tree for tree in reversed(node.trees) if tree is not None)


def covering_proof(root: TreeNode, key: bytes, found: dict[bytes, bytes]) -> None:
    """Add to `found` the blocks that inverting an operation on this key reads: the search paths of the key and its neighbours."""
    node: TreeNode | None = root
    while node is not None:
        found[node.cid] = node.block
        at = bisect_left(node.keys, key)
        if at < len(node.keys) and node.keys[at] == key:
            left, right = node.trees[at], node.trees[at + 1]
            while left is not None:
                found[left.cid] = left.block
                left = left.trees[-1]
            while right is not None:
                found[right.cid] = right.block
                right = right.trees[0]
            return
        node = node.trees[at]
