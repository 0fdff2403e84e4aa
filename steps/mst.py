"""The Merkle search tree of a repo: node blocks → leaves in key order, and sorted leaves → root.

`walk` raises MstError, and nothing else, on wire input: a tree that it walks to its end is the one tree that its leaves
allow (key order, layers, prefix compression, canonical nodes, nothing missing). A missing block has a reason of its own,
since a gap is transient and a malformed tree is not.
Inversion of single operations, which live commits need, belongs here too and comes with their verification.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

import libipld

from steps.cid import CID_SIZE, DAG_CBOR, RAW, cid_str

MAX_KEY = 1024  # also what bounds the work that prefix compression can ask for
_LINK_HEAD = b"\xd8\x2a\x58\x25\x00"
_LINK_SIZE = 41
_OURS = (DAG_CBOR, RAW)
_LAYER0 = 0


class MstReason(StrEnum):
    """Why a tree was refused."""

    MISSING_BLOCK = "missing_block"
    BAD_NODE = "bad_node"
    KEY_ORDER = "key_order"
    KEY_LAYER = "key_layer"
    KEY_TOO_LONG = "key_too_long"
    BAD_PREFIX = "bad_prefix"
    EMPTY_NODE = "empty_node"


class MstError(Exception):
    """`cid`: bytes of the node at fault (of the block that is missing), empty in `build`."""

    def __init__(self, reason: MstReason, cid: bytes, detail: str = "") -> None:
        where = f" in {cid_str(cid)}" if cid else ""
        super().__init__(f"{reason}{where}{': ' + detail if detail else ''}")
        self.reason = reason
        self.cid = cid


class Entry(NamedTuple):
    """A leaf of a node: its full key, the record's CID, and the subtree between this leaf and the next."""

    key: bytes
    value: bytes
    tree: bytes | None


class Node(NamedTuple):
    """`left`: the subtree before the first entry."""

    left: bytes | None
    entries: list[Entry]


def key_layer(key: bytes) -> int:
    """Pairs of leading zero bits of the key's SHA-256: the layer of the tree where the key must stand (0 = the lowest)."""
    return (256 - int.from_bytes(sha256(key).digest()).bit_length()) >> 1


def parse_node(cid: bytes, block: bytes) -> Node:
    """One node, strictly: types, CID kinds, prefixes, key order within the node, and the canonical encoding."""
    try:
        node = libipld.decode_dag_cbor(block)
    except (ValueError, RecursionError) as err:
        raise MstError(MstReason.BAD_NODE, cid, str(err)[:200]) from err
    if type(node) is not dict or len(node) != 2 or type(node.get("e")) is not list or "l" not in node:
        raise MstError(MstReason.BAD_NODE, cid, "not {e: […], l: …}")
    left = node["l"]
    links = 0
    size = 5 + _head(len(node["e"])) + 1
    if left is not None:
        _check_tree(cid, left)
        links, size = 1, size + _LINK_SIZE - 1
    entries: list[Entry] = []
    previous = b""
    for entry in node["e"]:
        if type(entry) is not dict or len(entry) != 4:
            raise MstError(MstReason.BAD_NODE, cid, "an entry is not {k, p, t, v}")
        suffix, shared, tree, value = entry.get("k"), entry.get("p"), entry.get("t"), entry.get("v")
        if type(suffix) is not bytes or type(shared) is not int or type(value) is not bytes or "t" not in entry:
            raise MstError(MstReason.BAD_NODE, cid, "a field has the wrong type")
        if len(value) != CID_SIZE or value[:4] not in _OURS:
            raise MstError(MstReason.BAD_NODE, cid, "a value is no CID")
        length = len(suffix)
        size += 50 + _head(length) + length + _head(shared)
        links += 1
        if tree is None:
            size += 1
        else:
            _check_tree(cid, tree)
            size += _LINK_SIZE
            links += 1
        key = _key(cid, previous, shared, suffix)
        entries.append(Entry(key, value, tree))
        previous = key
    # The decoder takes a byte string for a CID and integers in a long spelling. The canonical node has exactly this size,
    # and this many links at least.
    if len(block) != size or block.count(_LINK_HEAD) < links:
        raise MstError(MstReason.BAD_NODE, cid, "not canonical")
    return Node(left, entries)


def walk(root: bytes, get_block: Callable[[bytes], bytes | None]) -> Iterator[tuple[str, bytes]]:
    """(path, CID of the record) of every leaf in key order.

    The path is not checked for its syntax; one that is not ASCII comes with backslash escapes, which no path may have.
    Only the nodes between the root and the current leaf are held.
    """
    last = b""
    node = _load(root, get_block)
    if not node.entries:
        if node.left is not None:
            raise MstError(MstReason.EMPTY_NODE, root, "a root without keys above a tree")
        return
    layer = key_layer(node.entries[0].key)
    # what is left to do, next one last: a leaf as (key, value, node, -1), a subtree as (b"", cid, parent, its layer)
    todo: list[tuple[bytes, bytes, bytes, int]] = []
    _push(todo, root, node, layer)
    while todo:
        key, cid, parent, layer = todo.pop()
        if layer < 0:
            if key <= last:
                raise MstError(MstReason.KEY_ORDER, parent)
            last = key
            yield key.decode("ascii", "backslashreplace"), cid
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
            yield key.decode("ascii", "backslashreplace"), value


def build(leaves: Iterable[tuple[str, bytes]], put: Callable[[bytes, bytes], object] | None = None) -> bytes:
    """The root CID of the tree of these leaves (path, CID bytes), which must come in key order; holds one node a layer.

    `put(cid, block)` receives every node. MstError(KEY_ORDER) where a key does not follow its predecessor.
    """
    open_nodes: list[Node] = []
    last = b""
    for path, value in leaves:
        key = path.encode()
        if key <= last:
            raise MstError(MstReason.KEY_ORDER, b"", path[:200])
        last = key
        layer = key_layer(key)
        while len(open_nodes) <= layer:
            open_nodes.append(Node(None, []))
        below = _close(open_nodes, layer, put)
        if below is not None:
            _attach(open_nodes, layer, below)
        open_nodes[layer].entries.append(Entry(key, value, None))
    if not open_nodes:
        return _write(Node(None, []), put)
    root = _close(open_nodes, len(open_nodes), put)
    assert root is not None  # the highest layer has a key  # noqa: S101
    return root


def encode_node(node: Node) -> bytes:
    """The canonical DAG-CBOR of a node."""
    parts = [b"\xa2\x61e", _cbor_head(0x80, len(node.entries))]
    previous = b""
    for key, value, tree in node.entries:
        shared = _shared(previous, key)
        parts += (
            b"\xa4\x61k",
            _cbor_head(0x40, len(key) - shared),
            key[shared:],
            b"\x61p",
            _cbor_head(0, shared),
            b"\x61t",
            b"\xf6" if tree is None else _LINK_HEAD + tree,
            b"\x61v\xd8\x2a\x58\x25\x00",
            value,
        )
        previous = key
    parts += (b"\x61l", b"\xf6" if node.left is None else _LINK_HEAD + node.left)
    return b"".join(parts)


def _load(cid: bytes, get_block: Callable[[bytes], bytes | None]) -> Node:
    block = get_block(cid)
    if block is None:
        raise MstError(MstReason.MISSING_BLOCK, cid)
    return parse_node(cid, block)


def _push(todo: list[tuple[bytes, bytes, bytes, int]], cid: bytes, node: Node, layer: int) -> None:
    """Put a node's leaves and subtrees on the stack, last one first; its keys must belong to its layer."""
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
    """Three leaves of four stand in the lowest layer: no subtrees, and a first digest byte of 64 or more."""
    if node.left is not None:
        raise MstError(MstReason.KEY_LAYER, cid, "a subtree below the lowest layer")
    for key, _, tree in node.entries:
        if tree is not None or sha256(key).digest()[0] < 0x40:
            raise MstError(MstReason.KEY_LAYER, cid)


def _check_tree(cid: bytes, tree: object) -> None:
    if type(tree) is not bytes or len(tree) != CID_SIZE or tree[:4] != DAG_CBOR:
        raise MstError(MstReason.BAD_NODE, cid, "a subtree is no CID of a DAG-CBOR block")


def _key(cid: bytes, previous: bytes, shared: int, suffix: bytes) -> bytes:
    """The full key; the shared prefix must be the longest, and the key greater than its predecessor."""
    if not 0 <= shared <= len(previous):
        raise MstError(MstReason.BAD_PREFIX, cid, f"{shared} shared bytes")
    if shared + len(suffix) > MAX_KEY:
        raise MstError(MstReason.KEY_TOO_LONG, cid)
    if not suffix:
        raise MstError(MstReason.KEY_ORDER, cid)
    if shared < len(previous):
        if suffix[0] == previous[shared]:
            raise MstError(MstReason.BAD_PREFIX, cid, "not the longest")
        if suffix[0] < previous[shared]:
            raise MstError(MstReason.KEY_ORDER, cid)
    return previous[:shared] + suffix


def _close(open_nodes: list[Node], layer: int, put: Callable[[bytes, bytes], object] | None) -> bytes | None:
    """Write the open nodes below a layer, each into the one above it; returns the CID that belongs into `layer`."""
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


def _shared(previous: bytes, key: bytes) -> int:
    limit = min(len(previous), len(key))
    if previous[:limit] == key[:limit]:
        return limit
    return next(at for at in range(limit) if previous[at] != key[at])


def _head(value: int) -> int:
    """Bytes of a minimal CBOR head; the values here are lengths and counts in one block."""
    return 1 if value < 24 else 2 if value < 256 else 3 if value < 65536 else 5


def _cbor_head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes((major | value,))
    if value < 256:
        return bytes((major | 24, value))
    if value < 65536:
        return bytes((major | 25,)) + value.to_bytes(2)
    return bytes((major | 26,)) + value.to_bytes(4)
