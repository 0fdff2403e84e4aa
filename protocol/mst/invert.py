"""Inversion of a commit's operations: the tree after them, minus what they did, must be the tree before them.

`invert(root, get_block, changes) -> bytes`: the root CID before, computed over the part of the tree that a commit carries;
subtrees that no operation touches stay stubs (their CID is all that is needed). Raises `Unproven`, and nothing else, on wire
input. Its `cannot_tell` is true where a block is missing or an operation names no `prev`: then nothing is proven false, and
the repo has to be fetched. Otherwise the commit claims what its own tree denies.

The tree is the one that its leaves allow, so the order of inversion does not matter to the result. Deleted keys go back in
first: that asks for fewer blocks.

Nodes are read and written here as bytes, since a firehose does this for every commit: what an operation does not touch is
copied. For the same reason the layer of one key per node is looked at, not of all: a leaf that no operation names stands in
the tree before at the same place, so where the result is the root of a valid tree, that leaf is where it must be. A key that
an operation created is not in the tree before, so nothing but this module checks its place: its layer, that the leaves right
before and after it lie on their side of it, and that no empty node stands where it is removed.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from protocol.cid import CID_SIZE, DAG_CBOR, RAW, is_any_cid
from protocol.mst.node import MAX_KEY, MstError, MstReason, cbor_head, key_layer, link_head, shared_bytes

Blocks = Callable[[bytes], bytes | None]


class UnprovenReason(StrEnum):
    """Why the operations could not be inverted, or do not fit their tree."""

    MISSING_PROOF = "missing_proof"
    NO_PREV = "no_prev"
    BAD_TREE = "bad_tree"
    OP_NOT_IN_TREE = "op_not_in_tree"


_LINK = b"\xd8*X%\0"
_TREE = _LINK + DAG_CBOR
_VALUE = b"av" + _LINK
_NO_TREE = b"\xf6" + _VALUE
_VALUES = frozenset((_VALUE + DAG_CBOR, _VALUE + RAW))
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


UNTOLD = b""


class Change(NamedTuple):
    """What an operation did at a key: `after` None for a delete, `before` None for a create; CIDs are of any kind.

    An update or delete that does not name what it replaces has `before` UNTOLD.
    """

    key: bytes
    after: bytes | None
    before: bytes | None


class _Branch:
    """A node in memory: `trees[i]` stands before leaf i, the last tree after all of them.

    `heads[i]` is the encoding of leaf i up to its subtree, None where its predecessor changed. `cid` is that of the block
    that the node was read from, None once it or anything below it is another.
    """

    __slots__ = ("cid", "heads", "keys", "layer", "trees", "values")

    def __init__(  # noqa: PLR0917 (made for every node of every commit: keywords cost)
        self,
        layer: int,
        trees: "list[_Tree]",
        keys: list[bytes],
        values: list[bytes],
        heads: list[bytes | None],
        cid: bytes | None = None,
    ) -> None:
        self.layer = layer
        self.trees = trees
        self.keys = keys
        self.values = values
        self.heads = heads
        self.cid = cid


_Tree = bytes | _Branch | None
"""A stub (CID bytes), a node in memory, or nothing."""


def invert(root: bytes, get_block: Blocks, changes: Sequence[Change]) -> bytes:
    """The root CID before `changes` (each key once). Raises Unproven."""
    if any(change.before == UNTOLD or change.before is change.after is None for change in changes):
        raise Unproven(UnprovenReason.NO_PREV, "an update or delete names no prev")
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
        """The value at a key, or None. Loads the nodes on the way."""
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
        """Another value at a key that is there."""
        node: _Branch | None = self._root
        while node is not None:
            node.cid = None
            at = bisect_left(node.keys, key)
            if at < len(node.keys) and node.keys[at] == key:
                node.values[at] = value
                return
            node = self._loaded(node, at)
        raise MstError(MstReason.KEY_ORDER, b"", "a key that was found is gone")

    def insert(self, key: bytes, value: bytes) -> None:
        """A key that is not there."""
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
        """A key that is there; what stood beside it grows together."""
        self._remove(self._root, key)
        while not self._root.keys and self._root.layer >= 0:
            below = self._root.trees[0]
            if below is None:
                self._root = _Branch(-1, [None], [], [], [])
            elif isinstance(below, _Branch):
                self._root = below
            else:
                self._root = self._load(below, self._root.layer - 1)

    def root_cid(self) -> bytes:
        """The CID of the tree as it stands now."""
        return _cid(self._root) or b""

    def _insert(self, node: _Branch, key: bytes, value: bytes, layer: int) -> None:
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

    def _remove(self, node: _Branch, key: bytes) -> None:
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
            raise MstError(MstReason.KEY_ORDER, b"", "a key that was found is gone")
        self._remove(below, key)
        if not below.keys and below.trees[0] is None:
            node.trees[at] = None

    def _check_seam(self, node: _Branch, at: int) -> None:
        """The last key before leaf `at` is below it, the first after it above it, the leaf beside it of its layer.

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

    def _inner(self, node: _Branch, at: int) -> _Branch | None:
        tree = node.trees[at]
        if isinstance(tree, bytes):
            tree = node.trees[at] = self._load(tree, node.layer - 1)
        return tree

    def _split(self, node: _Branch, key: bytes) -> tuple[_Tree, _Tree]:
        """What stands before and after a key."""
        at = bisect_left(node.keys, key)
        below = self._loaded(node, at)
        left, right = (None, None) if below is None else self._split(below, key)
        before = _Branch(node.layer, [*node.trees[:at], left], node.keys[:at], node.values[:at], node.heads[:at])
        heads: list[bytes | None] = [None, *node.heads[at + 1 :]] if at < len(node.heads) else []
        after = _Branch(node.layer, [right, *node.trees[at + 1 :]], node.keys[at:], node.values[at:], heads)
        return _kept(before), _kept(after)

    def _merged(self, left: _Tree, right: _Tree, layer: int) -> _Tree:
        if left is None or right is None:
            return right if left is None else left
        first, second = self._load(left, layer), self._load(right, layer)
        middle = self._merged(first.trees[-1], second.trees[0], layer - 1)
        heads = [*first.heads, *([None, *second.heads[1:]] if second.heads else [])]
        trees = [*first.trees[:-1], middle, *second.trees[1:]]
        return _Branch(layer, trees, first.keys + second.keys, first.values + second.values, heads)

    def _loaded(self, node: _Branch, at: int) -> _Branch | None:
        """The subtree at a place, in memory; its keys lie between the leaves beside it."""
        tree = node.trees[at]
        if not isinstance(tree, bytes):
            return tree
        below = self._load(tree, node.layer - 1)
        keys = below.keys
        if keys and ((at > 0 and keys[0] <= node.keys[at - 1]) or (at < len(node.keys) and keys[-1] >= node.keys[at])):
            raise MstError(MstReason.KEY_ORDER, tree)
        node.trees[at] = below
        return below

    def _load(self, tree: bytes | _Branch, layer: int) -> _Branch:
        if isinstance(tree, _Branch):
            return tree
        node = self._read(tree, layer)
        if not node.keys and node.trees[0] is None:
            raise MstError(MstReason.EMPTY_NODE, tree)
        _check_layer(node)
        return node

    def _read(self, cid: bytes, layer: int) -> _Branch:
        block = self._get_block(cid)
        if block is None:
            raise MstError(MstReason.MISSING_BLOCK, cid)
        try:
            return _parsed(cid, block, layer)
        except IndexError as err:
            raise MstError(MstReason.BAD_NODE, cid, "cut off") from err


def _check_layer(node: _Branch) -> None:
    """One key stands for all: the others are in the tree before as well, whose validity the caller knows (see above)."""
    if node.layer < 0 or (node.keys and key_layer(node.keys[0]) != node.layer):
        raise MstError(MstReason.KEY_LAYER, node.cid or b"")
    if node.layer == 0 and any(node.trees):
        raise MstError(MstReason.KEY_LAYER, node.cid or b"", "a subtree below the lowest layer")


def _parsed(cid: bytes, block: bytes, layer: int) -> _Branch:  # noqa: PLR0912, PLR0915 (calls would double its time)
    """A node from its canonical encoding, and from no other. Raises MstError, and IndexError where the block ends early."""
    if block[:3] != b"\xa2ae":
        raise MstError(MstReason.BAD_NODE, cid)
    count, at = block[3] - 0x80, 4
    if not 0 <= count < 24:
        count, at = _number(cid, block, 3, 0x80)
    trees: list[_Tree] = [None]  # the first stands at the end of the block
    keys: list[bytes] = []
    values: list[bytes] = []
    heads: list[bytes | None] = []
    key = b""
    for _ in range(count):
        size, suffix = block[at + 3] - 0x40, at + 4
        if size == 24 and block[suffix] >= 24:
            size, suffix = block[suffix], at + 5
        elif not 0 <= size < 24:
            size, suffix = _number(cid, block, at + 3, 0x40)
        end = suffix + size
        shared, link = block[end + 2], end + 5
        if shared == 24 and block[end + 3] >= 24:
            shared, link = block[end + 3], end + 6
        elif shared >= 24:
            shared, link = _number(cid, block, end + 2, 0)
            link += 2
        if block[at : at + 3] != b"\xa4ak" or block[end : end + 2] != b"ap" or block[link - 2 : link] != b"at":
            raise MstError(MstReason.BAD_NODE, cid)
        heads.append(block[at:link])
        if shared < len(key):
            if block[suffix] <= key[shared]:
                raise MstError(MstReason.KEY_ORDER, cid)
        elif shared > len(key):
            raise MstError(MstReason.BAD_PREFIX, cid)
        if not size or shared + size > MAX_KEY:
            raise MstError(MstReason.KEY_ORDER if not size else MstReason.KEY_TOO_LONG, cid)
        key = key[:shared] + block[suffix:end]
        keys.append(key)
        if block[link] == 0xF6:
            trees.append(None)
            at = link + 1
        else:
            tree, at = _link(cid, block, link)
            trees.append(tree)
        if block[at : at + 11] in _VALUES:
            values.append(block[at + 7 : at + 43])
            at += 43
        else:
            value, at = _foreign(cid, block, at)
            values.append(value)
    if block[at : at + 2] != b"al":
        raise MstError(MstReason.BAD_NODE, cid)
    trees[0], at = _link(cid, block, at + 2)
    if at != len(block):
        raise MstError(MstReason.BAD_NODE, cid, "longer than a node")
    return _Branch(layer, trees, keys, values, heads, cid)


def _link(cid: bytes, block: bytes, at: int) -> tuple[bytes | None, int]:
    """A subtree's CID or null, and where it ends."""
    if block[at] == 0xF6:
        return None, at + 1
    if block[at : at + 9] != _TREE:
        raise MstError(MstReason.BAD_NODE, cid, "a subtree is no CID of a DAG-CBOR block")
    return block[at + 5 : at + 41], at + 41


def _foreign(cid: bytes, block: bytes, at: int) -> tuple[bytes, int]:
    """A leaf's CID of another codec or hash function, and where it ends."""
    size, start = _number(cid, block, at + 4, 0x40)
    value, end = block[start + 1 : start + size], start + size
    if block[at : at + 4] != b"av\xd8*" or block[start] or not is_any_cid(value):
        raise MstError(MstReason.BAD_NODE, cid, "a value is no CID")
    return value, end


def _number(cid: bytes, block: bytes, at: int, major: int) -> tuple[int, int]:
    """A CBOR head of this major type in its shortest form, and where it ends."""
    value = block[at] - major
    if 0 <= value < 24:
        return value, at + 1
    width = {24: 1, 25: 2}.get(value, 0)
    value = int.from_bytes(block[at + 1 : at + 1 + width])
    if value < (0, 24, 256)[width] or not width:
        raise MstError(MstReason.BAD_NODE, cid, "not canonical")
    return value, at + 1 + width


def _lone(layer: int, left: _Tree, key: bytes, value: bytes, right: _Tree) -> _Branch:
    return _Branch(layer, [left, right], [key], [value], [None])


def _raised(tree: _Tree, layer: int, under: int) -> _Tree:
    """A tree of one layer as a child of a node in layer `under`: nodes without leaves stand between."""
    if tree is None:
        return None
    for height in range(layer + 1, under):
        tree = _Branch(height, [tree], [], [], [])
    return tree


def _kept(node: _Branch) -> _Branch | None:
    return None if not node.keys and node.trees[0] is None else node


def _cid(tree: _Tree) -> bytes | None:
    if not isinstance(tree, _Branch):
        return tree
    if tree.cid is not None:
        return tree.cid
    left, *links = [(part.cid or _cid(part)) if isinstance(part, _Branch) else part for part in tree.trees]
    parts: list[bytes] = [b"\xa2ae", cbor_head(0x80, len(tree.keys))]
    add, previous = parts.append, b""
    for key, value, head, link in zip(tree.keys, tree.values, tree.heads, links, strict=True):
        add(_head(previous, key) if head is None else head)
        add(_NO_TREE if link is None else _LINK + link + _VALUE)
        if len(value) != CID_SIZE:
            parts[-1] = parts[-1][: -len(_LINK)] + link_head(value)
        add(value)
        previous = key
    add(b"al\xf6" if left is None else b"al" + _LINK + left)
    return DAG_CBOR + sha256(b"".join(parts)).digest()


def _head(previous: bytes, key: bytes) -> bytes:
    """A leaf's encoding up to its subtree, behind another leaf."""
    shared = shared_bytes(previous, key)
    size = len(key) - shared
    return b"".join((b"\xa4ak", cbor_head(0x40, size), key[shared:], b"ap", cbor_head(0, shared), b"at"))
