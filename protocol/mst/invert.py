"""Inversion of a commit's operations: undone on the tree after the commit, they must give the tree before it.

`invert` returns the root CID before the operations. It needs only the part of the tree that a commit carries: of subtrees that
no operation touches, the CID is enough. It raises `Unproven`, and nothing else, on wire input. If a block is missing or an
operation has no `prev`, `cannot_tell` is true: nothing is disproven, and the repo has to be fetched. Otherwise the operations
contradict the commit's own tree.

A set of leaves has exactly one valid tree, so the result does not depend on the order. Deleted keys are inserted first, because
that needs fewer blocks.

The layer is checked for one key per node only: hashing every key of every commit would cost too much. That is enough for a leaf
that no operation names: it is at the same position in the tree before, whose root is compared. A created key is not in the tree
before, so its position is checked here: its layer, the order of the keys right before and after it, and that its removal leaves
no empty node.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from protocol.mst.branch import Branch, Tree, parse_branch, tree_cid
from protocol.mst.node import MstError, MstReason, key_layer

Blocks = Callable[[bytes], bytes | None]


class UnprovenReason(StrEnum):
    """Why the operations could not be inverted, or do not fit their tree."""

    MISSING_PROOF = "missing_proof"
    NO_PREV = "no_prev"
    BAD_TREE = "bad_tree"
    OP_NOT_IN_TREE = "op_not_in_tree"


_CANNOT_TELL: Final = frozenset({UnprovenReason.MISSING_PROOF, UnprovenReason.NO_PREV})


class Unproven(Exception):
    """The tree does not prove the operations. `cannot_tell`: it does not disprove them either."""

    def __init__(self, reason: UnprovenReason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    @property
    def cannot_tell(self) -> bool:
        return self.reason in _CANNOT_TELL


NOT_GIVEN: Final = b""


class Change(NamedTuple):
    """The effect of an operation on a key. `after`: None for a delete. `before`: None for a create. CIDs are of any kind.

    `before` is NOT_GIVEN for an update or delete without `prev`.
    """

    key: bytes
    after: bytes | None
    before: bytes | None


def invert(root: bytes, get_block: Blocks, changes: Sequence[Change]) -> bytes:
    """The root CID before `changes` (each key once). Raises Unproven."""
    if any(change.before == NOT_GIVEN or change.before is change.after is None for change in changes):
        raise Unproven(UnprovenReason.NO_PREV, "an update or delete has no prev")
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
    """The part of a tree that the blocks of a commit cover. Methods raise MstError."""

    def __init__(self, root: bytes, get_block: Blocks) -> None:
        self._get_block = get_block
        node = self._read(root, 0)
        if node.keys:
            node.layer = key_layer(node.keys[0])
            _check_layer(node)
        elif node.trees[0] is not None:
            raise MstError(MstReason.EMPTY_NODE, root)
        else:
            node.layer = -1
        self._root = node

    def find(self, key: bytes) -> bytes | None:
        """The value at a key, or None. Loads the nodes on the path."""
        layer, node = key_layer(key), self._root
        while node.layer >= layer:
            at = bisect_left(node.keys, key)
            if at < len(node.keys) and node.keys[at] == key:
                if node.layer != layer:
                    raise MstError(MstReason.KEY_LAYER, node.cid or b"", "a key above its layer")
                return node.values[at]
            below = self._loaded(node, at)
            if below is None or node.layer == layer:
                return None
            node = below
        return None

    def replace(self, key: bytes, value: bytes) -> None:
        """Change the value of an existing key."""
        node: Branch | None = self._root
        while node is not None:
            node.cid = None
            at = bisect_left(node.keys, key)
            if at < len(node.keys) and node.keys[at] == key:
                node.values[at] = value
                return
            node = self._loaded(node, at)
        raise MstError(MstReason.KEY_ORDER, b"", "a key that was found has disappeared")

    def insert(self, key: bytes, value: bytes) -> None:
        """Insert a new key."""
        layer = key_layer(key)
        if self._root.layer < 0:
            self._root = _lone(layer, None, key, value, None)
        elif layer > self._root.layer:
            left, right = self._split(self._root, key)
            base = self._root.layer
            self._root = _lone(layer, _raised(left, base, layer), key, value, _raised(right, base, layer))
        else:
            self._insert(self._root, key, value, layer)

    def remove(self, key: bytes) -> None:
        """Remove an existing key and merge the subtrees on both sides of it."""
        self._remove(self._root, key)
        while not self._root.keys and self._root.layer >= 0:
            below = self._root.trees[0]
            if below is None:
                self._root = Branch(-1, [None], [], [], [])
            elif isinstance(below, Branch):
                self._root = below
            else:
                self._root = self._load(below, self._root.layer - 1)

    def root_cid(self) -> bytes:
        """The CID of the tree with its changes."""
        return tree_cid(self._root) or b""

    def _insert(self, node: Branch, key: bytes, value: bytes, layer: int) -> None:
        node.cid = None
        at = bisect_left(node.keys, key)
        below = self._loaded(node, at)
        if node.layer == layer:
            left, right = (None, None) if below is None else self._split(below, key)
            node.keys.insert(at, key)
            node.values.insert(at, value)
            node.heads[at : at + 1] = [None, None] if at < len(node.heads) else [None]
            node.trees[at : at + 1] = [left, right]
        elif below is None:
            node.trees[at] = _raised(_lone(layer, None, key, value, None), layer, node.layer)
        else:
            self._insert(below, key, value, layer)

    def _remove(self, node: Branch, key: bytes) -> None:
        node.cid = None
        at = bisect_left(node.keys, key)
        if at < len(node.keys) and node.keys[at] == key:
            self._check_seam(node, at)
            del node.keys[at], node.values[at], node.heads[at]
            if at < len(node.heads):
                node.heads[at] = None
            node.trees[at : at + 2] = [self._merged(node.trees[at], node.trees[at + 1], node.layer - 1)]
            return
        below = self._loaded(node, at)
        if below is None:
            raise MstError(MstReason.KEY_ORDER, b"", "a key that was found has disappeared")
        self._remove(below, key)
        if not below.keys and below.trees[0] is None:
            node.trees[at] = None

    def _check_seam(self, node: Branch, at: int) -> None:
        """Check leaf `at`: its layer, and that the keys right before and after it are on the right side.

        Loads the nodes between it and these two keys.
        """
        key = node.keys[at]
        if len(node.keys) > 1 and key_layer(node.keys[at - 1 if at else 1]) != node.layer:
            raise MstError(MstReason.KEY_LAYER, node.cid or b"")
        for place, last in ((at, -1), (at + 1, 0)):
            above, below = node, self._inner(node, place)
            while below is not None:
                above, below = below, self._inner(below, len(below.keys) if last else 0)
            if above is not node and (above.keys[last] >= key if last else above.keys[0] <= key):
                raise MstError(MstReason.KEY_ORDER, above.cid or b"", "a key on the wrong side of its neighbour")

    def _inner(self, node: Branch, at: int) -> Branch | None:
        tree = node.trees[at]
        if isinstance(tree, bytes):
            tree = node.trees[at] = self._load(tree, node.layer - 1)
        return tree

    def _split(self, node: Branch, key: bytes) -> tuple[Tree, Tree]:
        """The trees of the keys before and after `key`."""
        at = bisect_left(node.keys, key)
        below = self._loaded(node, at)
        left, right = (None, None) if below is None else self._split(below, key)
        before = Branch(node.layer, [*node.trees[:at], left], node.keys[:at], node.values[:at], node.heads[:at])
        heads: list[bytes | None] = [None, *node.heads[at + 1 :]] if at < len(node.heads) else []
        after = Branch(node.layer, [right, *node.trees[at + 1 :]], node.keys[at:], node.values[at:], heads)
        return _kept(before), _kept(after)

    def _merged(self, left: Tree, right: Tree, layer: int) -> Tree:
        if left is None or right is None:
            return right if left is None else left
        first, second = self._load(left, layer), self._load(right, layer)
        middle = self._merged(first.trees[-1], second.trees[0], layer - 1)
        heads = [*first.heads, *([None, *second.heads[1:]] if second.heads else [])]
        trees = [*first.trees[:-1], middle, *second.trees[1:]]
        return Branch(layer, trees, first.keys + second.keys, first.values + second.values, heads)

    def _loaded(self, node: Branch, at: int) -> Branch | None:
        """The subtree at an index, loaded; checks that its keys lie between the leaves on both sides."""
        tree = node.trees[at]
        if not isinstance(tree, bytes):
            return tree
        below = self._load(tree, node.layer - 1)
        keys = below.keys
        if keys and ((at > 0 and keys[0] <= node.keys[at - 1]) or (at < len(node.keys) and keys[-1] >= node.keys[at])):
            raise MstError(MstReason.KEY_ORDER, tree)
        node.trees[at] = below
        return below

    def _load(self, tree: bytes | Branch, layer: int) -> Branch:
        if isinstance(tree, Branch):
            return tree
        node = self._read(tree, layer)
        if not node.keys and node.trees[0] is None:
            raise MstError(MstReason.EMPTY_NODE, tree)
        _check_layer(node)
        return node

    def _read(self, cid: bytes, layer: int) -> Branch:
        block = self._get_block(cid)
        if block is None:
            raise MstError(MstReason.MISSING_BLOCK, cid)
        try:
            return parse_branch(cid, block, layer)
        except IndexError as err:
            raise MstError(MstReason.BAD_NODE, cid, "truncated") from err


def _check_layer(node: Branch) -> None:
    """Check the layer of one key (see the module) and that layer 0 has no subtrees."""
    if node.layer < 0 or (node.keys and key_layer(node.keys[0]) != node.layer):
        raise MstError(MstReason.KEY_LAYER, node.cid or b"")
    if node.layer == 0 and any(node.trees):
        raise MstError(MstReason.KEY_LAYER, node.cid or b"", "a subtree below the lowest layer")


def _lone(layer: int, left: Tree, key: bytes, value: bytes, right: Tree) -> Branch:
    return Branch(layer, [left, right], [key], [value], [None])


def _raised(tree: Tree, layer: int, under: int) -> Tree:
    """A tree of one layer as a child of a node in layer `under`, with nodes without leaves between them."""
    if tree is None:
        return None
    for height in range(layer + 1, under):
        tree = Branch(height, [tree], [], [], [])
    return tree


def _kept(node: Branch) -> Branch | None:
    return None if not node.keys and node.trees[0] is None else node
