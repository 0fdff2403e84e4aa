"""Nodes of a partial tree: canonical encoding → `Branch` → CID. For `protocol.mst.invert`, which changes them.

A firehose does this for every commit, so nodes are read and written as bytes: an entry that no operation changed is copied, and
a node that did not change keeps its CID. `parse_branch` accepts the canonical encoding only. It does not check layers.
"""

from hashlib import sha256
from typing import Final

from protocol.cid import CID_SIZE, DAG_CBOR, RAW, is_any_cid
from protocol.mst.node import MAX_KEY, MstError, MstReason, cbor_head, link_head, shared_bytes

_LINK: Final = b"\xd8*X%\0"
_TREE: Final = _LINK + DAG_CBOR
_VALUE: Final = b"av" + _LINK
_NO_TREE: Final = b"\xf6" + _VALUE
_VALUES: Final = frozenset((_VALUE + DAG_CBOR, _VALUE + RAW))


class Branch:
    """A node in memory. `trees[i]` is the subtree before leaf i; the last one is after all leaves.

    `heads[i]`: the encoding of leaf i up to its subtree; None if the leaf before it changed. `cid`: of the block that the node
    was read from; None if the node or one below it changed.
    """

    __slots__ = ("cid", "heads", "keys", "layer", "trees", "values")

    def __init__(  # noqa: PLR0917 (created for every node of every commit: keyword arguments cost time)
        self,
        layer: int,
        trees: "list[Tree]",
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


Tree = bytes | Branch | None
"""A subtree that is not loaded (its CID), a node in memory, or no subtree."""


def parse_branch(cid: bytes, block: bytes, layer: int) -> Branch:  # noqa: PLR0912, PLR0915 (calls would double its time)
    """Parse a node, in canonical encoding only. Raises MstError, and IndexError if the block ends early."""
    if block[:3] != b"\xa2ae":
        raise MstError(MstReason.BAD_NODE, cid)
    count, at = block[3] - 0x80, 4
    if not 0 <= count < 24:
        count, at = _number(cid, block, 3, 0x80)
    trees: list[Tree] = [None]  # the first one is at the end of the block
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
    return Branch(layer, trees, keys, values, heads, cid)


def _link(cid: bytes, block: bytes, at: int) -> tuple[bytes | None, int]:
    """A subtree's CID or None, and the offset after it."""
    if block[at] == 0xF6:
        return None, at + 1
    if block[at : at + 9] != _TREE:
        raise MstError(MstReason.BAD_NODE, cid, "a subtree is not the CID of a DAG-CBOR block")
    return block[at + 5 : at + 41], at + 41


def _foreign(cid: bytes, block: bytes, at: int) -> tuple[bytes, int]:
    """A leaf's CID of another codec or hash function, and the offset after it."""
    size, start = _number(cid, block, at + 4, 0x40)
    value, end = block[start + 1 : start + size], start + size
    if block[at : at + 4] != b"av\xd8*" or block[start] or not is_any_cid(value):
        raise MstError(MstReason.BAD_NODE, cid, "a value is not a CID")
    return value, end


def _number(cid: bytes, block: bytes, at: int, major: int) -> tuple[int, int]:
    """The value of a CBOR head of this major type in its shortest form, and the offset after it."""
    value = block[at] - major
    if 0 <= value < 24:
        return value, at + 1
    width = {24: 1, 25: 2}.get(value, 0)
    value = int.from_bytes(block[at + 1 : at + 1 + width])
    if value < (0, 24, 256)[width] or not width:
        raise MstError(MstReason.BAD_NODE, cid, "not canonical")
    return value, at + 1 + width


def tree_cid(tree: Tree) -> bytes | None:
    """The CID of a tree with its changes; None for no tree."""
    if not isinstance(tree, Branch):
        return tree
    if tree.cid is not None:
        return tree.cid
    left, *links = [(part.cid or tree_cid(part)) if isinstance(part, Branch) else part for part in tree.trees]
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
    """A leaf's encoding up to its subtree. `previous`: the key of the leaf before it."""
    shared = shared_bytes(previous, key)
    size = len(key) - shared
    return b"".join((b"\xa4ak", cbor_head(0x40, size), key[shared:], b"ap", cbor_head(0, shared), b"at"))
