"""One node of a Merkle search tree: block ↔ Node, strictly. Raises MstError, and nothing else, on wire input."""

from enum import StrEnum
from hashlib import sha256
from typing import Final, NamedTuple

import libipld

from protocol.cid import CID_SIZE, DAG_CBOR, RAW, cid_str, is_any_cid

MAX_KEY: Final = 1024  # also bounds the work that prefix compression can cause
_LINK_HEAD: Final = b"\xd8\x2a\x58\x25\x00"
_LINK_SIZE: Final = 41
_OURS: Final = (DAG_CBOR, RAW)


class MstReason(StrEnum):
    MISSING_BLOCK = "missing_block"
    BAD_NODE = "bad_node"
    KEY_ORDER = "key_order"
    KEY_LAYER = "key_layer"
    KEY_TOO_LONG = "key_too_long"
    BAD_PREFIX = "bad_prefix"
    EMPTY_NODE = "empty_node"


class MstError(Exception):
    """A tree was refused. `cid`: the invalid node or the missing block; empty in `build`."""

    def __init__(self, reason: MstReason, cid: bytes, detail: str = "") -> None:
        where = f" in {cid_str(cid)}" if cid else ""
        super().__init__(f"{reason}{where}{': ' + detail if detail else ''}")
        self.reason = reason
        self.cid = cid


class NodeEntry(NamedTuple):
    """A leaf: its full key, the record's CID of any kind, and the subtree between this leaf and the next."""

    key: bytes
    value: bytes
    tree: bytes | None


class Node(NamedTuple):
    """`left`: the subtree before the first entry."""

    left: bytes | None
    entries: list[NodeEntry]


def key_layer(key: bytes) -> int:
    """The layer of a key: the pairs of leading zero bits of its SHA-256. 0 is the lowest."""
    digest = sha256(key).digest()
    return 0 if digest[0] > 0x3F else (256 - int.from_bytes(digest).bit_length()) >> 1  # 0 for three of four keys


def parse_node(cid: bytes, block: bytes) -> Node:
    """Parse a node. Checks types, CIDs, prefixes, the order of its keys, and the canonical encoding."""
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
    entries: list[NodeEntry] = []
    foreign = False
    previous = b""
    for entry in node["e"]:
        if type(entry) is not dict or len(entry) != 4:
            raise MstError(MstReason.BAD_NODE, cid, "an entry is not {k, p, t, v}")
        suffix, shared, tree, value = entry.get("k"), entry.get("p"), entry.get("t"), entry.get("v")
        if type(suffix) is not bytes or type(shared) is not int or type(value) is not bytes or "t" not in entry:
            raise MstError(MstReason.BAD_NODE, cid, "a field has the wrong type")
        if len(value) == CID_SIZE and value[:4] in _OURS:
            links += 1
            size += 50
        elif is_any_cid(value):
            foreign = True
        else:
            raise MstError(MstReason.BAD_NODE, cid, "a value is not a CID")
        length = len(suffix)
        size += _head(length) + length + _head(shared)
        if tree is None:
            size += 1
        else:
            _check_tree(cid, tree)
            size += _LINK_SIZE
            links += 1
        key = _key(cid, previous, shared, suffix)
        entries.append(NodeEntry(key, value, tree))
        previous = key
    found = Node(left, entries)
    # The decoder accepts byte strings as CIDs, and integers in longer forms. A canonical node has exactly this size and at
    # least this many links. Nodes with a CID of another kind are rare, so they are encoded again and compared.
    if encode_node(found) != block if foreign else len(block) != size or block.count(_LINK_HEAD) < links:
        raise MstError(MstReason.BAD_NODE, cid, "not canonical")
    return found


def encode_node(node: Node) -> bytes:
    """The canonical DAG-CBOR of a node."""
    parts = [b"\xa2\x61e", cbor_head(0x80, len(node.entries))]
    previous = b""
    for key, value, tree in node.entries:
        shared = shared_bytes(previous, key)
        parts += (
            b"\xa4\x61k",
            cbor_head(0x40, len(key) - shared),
            key[shared:],
            b"\x61p",
            cbor_head(0, shared),
            b"\x61t",
            b"\xf6" if tree is None else _LINK_HEAD + tree,
            b"\x61v",
            link_head(value),
            value,
        )
        previous = key
    parts += (b"\x61l", b"\xf6" if node.left is None else _LINK_HEAD + node.left)
    return b"".join(parts)


def link_head(cid: bytes) -> bytes:
    """The bytes before the CID in a DAG-CBOR link."""
    return _LINK_HEAD if len(cid) == CID_SIZE else b"\xd8\x2a" + cbor_head(0x40, len(cid) + 1) + b"\0"


def _check_tree(cid: bytes, tree: object) -> None:
    if type(tree) is not bytes or len(tree) != CID_SIZE or tree[:4] != DAG_CBOR:
        raise MstError(MstReason.BAD_NODE, cid, "a subtree is not the CID of a DAG-CBOR block")


def _key(cid: bytes, previous: bytes, shared: int, suffix: bytes) -> bytes:
    """The full key. The shared prefix must be the longest possible, and the key greater than `previous`."""
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


def shared_bytes(previous: bytes, key: bytes) -> int:
    """Length of the common prefix."""
    limit = min(len(previous), len(key))
    differs = int.from_bytes(previous[:limit]) ^ int.from_bytes(key[:limit])
    return limit - (differs.bit_length() + 7 >> 3)


def _head(value: int) -> int:
    """Size of a minimal CBOR head of a length or count."""
    return 1 if value < 24 else 2 if value < 256 else 3 if value < 65536 else 5


def cbor_head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes((major | value,))
    if value < 256:
        return bytes((major | 24, value))
    if value < 65536:
        return bytes((major | 25,)) + value.to_bytes(2)
    return bytes((major | 26,)) + value.to_bytes(4)
