"""Inversion of a commit's operations: the tree after them, minus what they did, must be the tree before them.

`invert(root, get_block, changes) -> bytes`: the root CID before, computed over the part of the tree that a commit carries;
subtrees that no operation touches stay stubs (their CID is all that is needed). Raises `Unproven`, and nothing else, on wire
input. Its `cannot_tell` is true where a block is missing or an operation names no `prev`: then nothing is proven false, and
the repo has to be fetched. Otherwise the commit claims what its own tree denies.

The tree is the one that its leaves allow, so the order of inversion does not matter to the result. Deleted keys go back in
first: that asks for fewer blocks.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from steps.cid import DAG_CBOR
from steps.mst_node import Entry, MstError, MstReason, Node, encode_node, key_layer, parse_node

Blocks = Callable[[bytes], bytes | None]


class UnprovenReason(StrEnum):
    """Why the operations could not be inverted, or do not fit their tree."""

    MISSING_PROOF = "missing_proof"
    NO_PREV = "no_prev"
    BAD_TREE = "bad_tree"
    OP_NOT_IN_TREE = "op_not_in_tree"


_CANNOT_TELL = frozenset({UnprovenReason.MISSING_PROOF, UnprovenReason.NO_PREV})


class Unproven(Exception):
    """The operations are not proven by the tree; `cannot_tell` says whether they are not disproven either."""

    def __init__(self, reason: UnprovenReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    @property
    def cannot_tell(self) -> bool:
        return self.reason in _CANNOT_TELL


class Change(NamedTuple):
    """What an operation did at a key: `after` None for a delete, `before` None for a create; CIDs are 36 bytes."""

    key: bytes
    after: bytes | None
    before: bytes | None


class _Branch:
    """A node in memory: `trees[i]` stands before `leaves[i]`, the last tree after all of them."""

    __slots__ = ("layer", "leaves", "trees")

    def __init__(self, layer: int, trees: "list[_Tree]", leaves: list[tuple[bytes, bytes]]) -> None:
        self.layer = layer
        self.trees = trees
        self.leaves = leaves


_Tree = bytes | _Branch | None
"""A stub (CID bytes), a node in memory, or nothing."""


def invert(root: bytes, get_block: Blocks, changes: Sequence[Change]) -> bytes:
    """The root CID before `changes` (each key once). Raises Unproven."""
    if any(change.before is None and change.after is None for change in changes):
        raise Unproven(UnprovenReason.NO_PREV, "a delete names no prev")
    try:
        tree = _Partial(root, get_block)
        for key, after, _ in changes:
            if tree.find(key) != after:
                raise Unproven(UnprovenReason.OP_NOT_IN_TREE, repr(key[:200]))
        for key, after, before in changes:
            if after is None and before is not None:
                tree.insert(key, before)
        for key, after, before in changes:
            if after is not None:
                tree.remove(key) if before is None else tree.replace(key, before)
        return tree.root_cid()
    except MstError as err:
        missing = err.reason is MstReason.MISSING_BLOCK
        raise Unproven(UnprovenReason.MISSING_PROOF if missing else UnprovenReason.BAD_TREE, str(err)) from err


class _Partial:
    """The tree of a commit, as far as its blocks go. Methods raise MstError."""

    def __init__(self, root: bytes, get_block: Blocks) -> None:
        self._get_block = get_block
        node = self._parse(root)
        if not node.entries and node.left is not None:
            raise MstError(MstReason.EMPTY_NODE, root)
        self._root = self._branch(root, node, key_layer(node.entries[0].key) if node.entries else -1)

    def find(self, key: bytes) -> bytes | None:
        """The value at a key, or None. Loads the nodes on the way."""
        layer, node = key_layer(key), self._root
        while node.layer >= layer:
            at = _position(node, key)
            if at < len(node.leaves) and node.leaves[at][0] == key:
                return node.leaves[at][1]
            below = self._loaded(node, at)
            if below is None or node.layer == layer:
                return None
            node = below
        return None

    def replace(self, key: bytes, value: bytes) -> None:
        """Another value at a key that is there."""
        node, at = self._holder(key)
        node.leaves[at] = (key, value)

    def insert(self, key: bytes, value: bytes) -> None:
        """A key that is not there."""
        layer = key_layer(key)
        if self._root.layer < 0:
            self._root = _Branch(layer, [None, None], [(key, value)])
        elif layer > self._root.layer:
            left, right = self._split(self._root, key)
            base = self._root.layer
            self._root = _Branch(layer, [_raised(left, base, layer), _raised(right, base, layer)], [(key, value)])
        else:
            self._insert(self._root, key, value, layer)

    def remove(self, key: bytes) -> None:
        """A key that is there; what stood beside it grows together."""
        self._remove(self._root, key)
        while not self._root.leaves and self._root.layer >= 0:
            below = self._loaded(self._root, 0) if isinstance(self._root.trees[0], _Branch) else self._root.trees[0]
            if below is None:
                self._root = _Branch(-1, [None], [])
            elif isinstance(below, _Branch):
                self._root = below
            else:
                self._root = self._branch(below, self._parse(below), self._root.layer - 1)

    def root_cid(self) -> bytes:
        """The CID of the tree as it stands now."""
        return _cid(self._root) or b""

    def _insert(self, node: _Branch, key: bytes, value: bytes, layer: int) -> None:
        at = _position(node, key)
        below = self._loaded(node, at)
        if node.layer == layer:
            left, right = (None, None) if below is None else self._split(below, key)
            node.leaves.insert(at, (key, value))
            node.trees[at : at + 1] = [left, right]
        elif below is None:
            node.trees[at] = _raised(_Branch(layer, [None, None], [(key, value)]), layer, node.layer)
        else:
            self._insert(below, key, value, layer)

    def _remove(self, node: _Branch, key: bytes) -> None:
        at = _position(node, key)
        if at < len(node.leaves) and node.leaves[at][0] == key:
            del node.leaves[at]
            node.trees[at : at + 2] = [self._merged(node.trees[at], node.trees[at + 1], node.layer - 1)]
            return
        below = self._loaded(node, at)
        if below is None:
            raise MstError(MstReason.KEY_ORDER, b"", "a key that was found is gone")
        self._remove(below, key)
        if not below.leaves and below.trees[0] is None:
            node.trees[at] = None

    def _split(self, node: _Branch, key: bytes) -> tuple[_Tree, _Tree]:
        """What stands before and after a key."""
        at = _position(node, key)
        below = self._loaded(node, at)
        left, right = (None, None) if below is None else self._split(below, key)
        before = _Branch(node.layer, [*node.trees[:at], left], node.leaves[:at])
        after = _Branch(node.layer, [right, *node.trees[at + 1 :]], node.leaves[at:])
        return _kept(before), _kept(after)

    def _merged(self, left: _Tree, right: _Tree, layer: int) -> _Tree:
        if left is None or right is None:
            return right if left is None else left
        first, second = self._load(left, layer), self._load(right, layer)
        middle = self._merged(first.trees[-1], second.trees[0], layer - 1)
        return _Branch(layer, [*first.trees[:-1], middle, *second.trees[1:]], first.leaves + second.leaves)

    def _holder(self, key: bytes) -> tuple[_Branch, int]:
        node: _Branch | None = self._root
        while node is not None:
            at = _position(node, key)
            if at < len(node.leaves) and node.leaves[at][0] == key:
                return node, at
            node = self._loaded(node, at)
        raise MstError(MstReason.KEY_ORDER, b"", "a key that was found is gone")

    def _loaded(self, node: _Branch, at: int) -> _Branch | None:
        """The subtree at a place, in memory; its keys lie between the leaves beside it."""
        tree = node.trees[at]
        if not isinstance(tree, bytes):
            return tree
        below = self._load(tree, node.layer - 1)
        if below.leaves and (
            (at > 0 and below.leaves[0][0] <= node.leaves[at - 1][0])
            or (at < len(node.leaves) and below.leaves[-1][0] >= node.leaves[at][0])
        ):
            raise MstError(MstReason.KEY_ORDER, tree)
        node.trees[at] = below
        return below

    def _load(self, tree: bytes | _Branch, layer: int) -> _Branch:
        return tree if isinstance(tree, _Branch) else self._branch(tree, self._parse(tree), layer)

    def _parse(self, cid: bytes) -> Node:
        block = self._get_block(cid)
        if block is None:
            raise MstError(MstReason.MISSING_BLOCK, cid)
        return parse_node(cid, block)

    @staticmethod
    def _branch(cid: bytes, node: Node, layer: int) -> _Branch:
        if node.entries and (layer < 0 or any(key_layer(entry.key) != layer for entry in node.entries)):
            raise MstError(MstReason.KEY_LAYER, cid)
        trees: list[_Tree] = [node.left, *(entry.tree for entry in node.entries)]
        if layer == 0 and any(tree is not None for tree in trees):
            raise MstError(MstReason.KEY_LAYER, cid, "a subtree below the lowest layer")
        return _Branch(layer, trees, [(entry.key, entry.value) for entry in node.entries])


def _position(node: _Branch, key: bytes) -> int:
    """Index of the first leaf that is not before the key: a linear search, since nodes have some four leaves."""
    at = 0
    for leaf, _ in node.leaves:
        if leaf >= key:
            break
        at += 1
    return at


def _raised(tree: _Tree, layer: int, under: int) -> _Tree:
    """A tree of one layer as a child of a node in layer `under`: nodes without leaves stand between."""
    if tree is None:
        return None
    for height in range(layer + 1, under):
        tree = _Branch(height, [tree], [])
    return tree


def _kept(node: _Branch) -> _Branch | None:
    return None if not node.leaves and node.trees[0] is None else node


def _cid(tree: _Tree) -> bytes | None:
    if not isinstance(tree, _Branch):
        return tree
    below = [_cid(part) for part in tree.trees]
    entries = [Entry(key, value, below[at + 1]) for at, (key, value) in enumerate(tree.leaves)]
    return DAG_CBOR + sha256(encode_node(Node(below[0], entries))).digest()
