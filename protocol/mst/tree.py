"""The Merkle search tree of a repo: node blocks → leaves in key order, and sorted leaves → root or proof.

`walk` raises MstError, and nothing else, on wire input. A tree that it walks to the end is valid: key order, layers, prefix
compression, canonical nodes, no missing block. MISSING_BLOCK is a reason of its own, because it may be transient.
"""

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Final

from protocol.cid import DAG_CBOR
from protocol.mst.node import MstError, MstReason, Node, NodeEntry, encode_node, key_layer, parse_node

__all__ = ["MstError", "MstReason", "TreeBuilder", "build", "key_layer", "prove", "walk"]

_LAYER0: Final = 0


def walk(root: bytes, get_block: Callable[[bytes], bytes | None]) -> Iterator[tuple[str, bytes]]:
    """(path, CID of the record) of every leaf in key order. CIDs may have any codec and hash function.

    The syntax of the path is not checked (see `protocol.mst.record_path`): its characters are the bytes of the key (Latin-1).
    Only the nodes between the root and the current leaf are in memory.
    """
    last = b""
    node = _load(root, get_block)
    if not node.entries:
        if node.left is not None:
            raise MstError(MstReason.EMPTY_NODE, root, "a root without keys above a tree")
        return
    layer = key_layer(node.entries[0].key)
    # a stack of leaves, as (key, value, node, -1), and subtrees, as (b"", cid, parent, layer)
    todo: list[tuple[bytes, bytes, bytes, int]] = []
    _push(todo, root, node, layer)
    while todo:
        key, cid, parent, layer = todo.pop()
        if layer < 0:
            if key <= last:
                raise MstError(MstReason.KEY_ORDER, parent)
            last = key
            yield key.decode("latin-1"), cid
            continue
        node = _load(cid, get_block)
        if layer > _LAYER0:
            if not node.entries and node.left is None:
                raise MstError(MstReason.EMPTY_NODE, cid)
            _push(todo, cid, node, layer)
            continue
        if not node.entries:
            raise MstError(MstReason.EMPTY_NODE, cid)
        _check_lowest(cid, node)
        if node.entries[0].key <= last:
            raise MstError(MstReason.KEY_ORDER, cid)
        last = node.entries[-1].key
        for key, value, _ in node.entries:
            yield key.decode("latin-1"), value


def build(leaves: Iterable[tuple[str | bytes, bytes]], put: Callable[[bytes, bytes], object] | None = None) -> bytes:
    """The root CID of the tree of these leaves (path or key, CID bytes). `put(cid, block)` is called with every node.

    Raises MstError(KEY_ORDER) if the leaves are not in key order.
    """
    builder = TreeBuilder(None if put is None else lambda _layer, cid, block: put(cid, block))
    for path, value in leaves:
        builder.add(path.encode() if isinstance(path, str) else path, value)
    return builder.root()


def prove(leaves: Iterable[tuple[bytes, bytes]], key: bytes) -> tuple[bytes, list[bytes]]:
    """The root CID of the tree of these leaves, and the node blocks that prove a key's value, or that the tree has no such key.

    They are the nodes between the root and the key, and at most one more for each layer. Raises MstError(KEY_ORDER).
    """
    found: dict[int, bytes] = {}
    passed = False

    def keep(layer: int, _cid: bytes, block: bytes) -> None:
        if passed:  # the node of each layer that was open when the leaves passed the key is the first one to be written
            found.setdefault(layer, block)

    builder = TreeBuilder(keep)
    for leaf, value in leaves:
        passed = passed or leaf >= key
        builder.add(leaf, value)
    passed = True
    return builder.root(), list(found.values())


def _load(cid: bytes, get_block: Callable[[bytes], bytes | None]) -> Node:
    block = get_block(cid)
    if block is None:
        raise MstError(MstReason.MISSING_BLOCK, cid)
    return parse_node(cid, block)


def _push(todo: list[tuple[bytes, bytes, bytes, int]], cid: bytes, node: Node, layer: int) -> None:
    """Push a node's leaves and subtrees, the last one first. Checks that its keys belong to its layer."""
    for key, value, tree in reversed(node.entries):
        if key_layer(key) != layer:
            raise MstError(MstReason.KEY_LAYER, cid)
        if tree is not None:
            todo.append((b"", tree, cid, _below(cid, layer)))
        todo.append((key, value, cid, -1))
    if node.left is not None:
        todo.append((b"", node.left, cid, _below(cid, layer)))


def _below(cid: bytes, layer: int) -> int:
    if layer == _LAYER0:
        raise MstError(MstReason.KEY_LAYER, cid, "a subtree below the lowest layer")
    return layer - 1


def _check_lowest(cid: bytes, node: Node) -> None:
    """Check a node of the lowest layer: no subtrees, and keys of layer 0. Three of four leaves are here, so it is fast."""
    if node.left is not None:
        raise MstError(MstReason.KEY_LAYER, cid, "a subtree below the lowest layer")
    for key, _, tree in node.entries:
        if tree is not None or sha256(key).digest()[0] < 0x40:
            raise MstError(MstReason.KEY_LAYER, cid)


class TreeBuilder:
    """Leaves in key order → root CID. Keeps one node per layer in memory. `put(layer, cid, block)` is called with every node."""

    def __init__(self, put: Callable[[int, bytes, bytes], object] | None = None) -> None:
        self._put = put
        self._open: list[Node] = []
        self._last = b""

    def add(self, key: bytes, value: bytes) -> None:
        """Add the next leaf; `value` is its CID. Raises MstError(KEY_ORDER) unless the key is greater than the last one."""
        if key <= self._last:
            raise MstError(MstReason.KEY_ORDER, b"", repr(key[:200]))
        self._last = key
        layer = key_layer(key)
        while len(self._open) <= layer:
            self._open.append(Node(None, []))
        below = self._close(layer)
        if below is not None:
            self._attach(layer, below)
        self._open[layer].entries.append(NodeEntry(key, value, None))

    def root(self) -> bytes:
        """The root CID. No leaf may be added after it."""
        if not self._open:
            return self._write(_LAYER0, Node(None, []))
        root = self._close(len(self._open))
        assert root is not None  # the highest layer has a key  # noqa: S101
        return root

    def _close(self, layer: int) -> bytes | None:
        """Write the open nodes below `layer`, each as a subtree of the next; returns the CID of the topmost one."""
        below: bytes | None = None
        for height in range(layer):
            if below is not None:
                self._attach(height, below)
            node = self._open[height]
            below = self._write(height, node) if node.entries or node.left is not None else None
            self._open[height] = Node(None, [])
        return below

    def _attach(self, layer: int, below: bytes) -> None:
        entries = self._open[layer].entries
        if entries:
            entries[-1] = entries[-1]._replace(tree=below)
        else:
            self._open[layer] = Node(below, entries)

    def _write(self, layer: int, node: Node) -> bytes:
        block = encode_node(node)
        cid = DAG_CBOR + sha256(block).digest()
        if self._put is not None:
            self._put(layer, cid, block)
        return cid
