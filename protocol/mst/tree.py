"""The Merkle search tree of a repo: node blocks → leaves in key order, and sorted leaves → root.

`walk` raises MstError, and nothing else, on wire input. A tree that it walks to the end is valid: key order, layers, prefix
compression, canonical nodes, no missing block. MISSING_BLOCK is a reason of its own, because it may be transient.
"""

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import Final

from protocol.cid import DAG_CBOR
from protocol.mst.node import MstError, MstReason, Node, NodeEntry, encode_node, key_layer, parse_node

__all__ = ["MstError", "MstReason", "build", "key_layer", "walk"]

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
    """The root CID of the tree of these leaves (path or key, CID bytes). Keeps one node per layer in memory.

    `put(cid, block)` is called with every node. Raises MstError(KEY_ORDER) if the leaves are not in key order.
    """
    open_nodes: list[Node] = []
    last = b""
    for path, value in leaves:
        key = path.encode() if isinstance(path, str) else path
        if key <= last:
            raise MstError(MstReason.KEY_ORDER, b"", repr(path[:200]))
        last = key
        layer = key_layer(key)
        while len(open_nodes) <= layer:
            open_nodes.append(Node(None, []))
        below = _close(open_nodes, layer, put)
        if below is not None:
            _attach(open_nodes, layer, below)
        open_nodes[layer].entries.append(NodeEntry(key, value, None))
    if not open_nodes:
        return _write(Node(None, []), put)
    root = _close(open_nodes, len(open_nodes), put)
    assert root is not None  # the highest layer has a key  # noqa: S101
    return root


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


def _close(open_nodes: list[Node], layer: int, put: Callable[[bytes, bytes], object] | None) -> bytes | None:
    """Write the open nodes below `layer`, each as a subtree of the next; returns the CID of the topmost one."""
    below: bytes | None = None
    for height in range(layer):
        if below is not None:
            _attach(open_nodes, height, below)
        node = open_nodes[height]
        below = _write(node, put) if node.entries or node.left is not None else None
        open_nodes[height] = Node(None, [])
    return below


def _attach(open_nodes: list[Node], layer: int, below: bytes) -> None:
    entries = open_nodes[layer].entries
    if entries:
        entries[-1] = entries[-1]._replace(tree=below)
    else:
        open_nodes[layer] = Node(below, entries)


def _write(node: Node, put: Callable[[bytes, bytes], object] | None) -> bytes:
    block = encode_node(node)
    cid = DAG_CBOR + sha256(block).digest()
    if put is not None:
        put(cid, block)
    return cid
