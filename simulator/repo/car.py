"""CIDs and CAR files. This writer is independent of the product's reader, which it tests.

A CID is its binary form: 36 bytes (version 1, dag-cbor, sha2-256), or more for some leaves of `odd_leaves`. A CAR is
`varint(header size) header (varint(CID and block size) cid block)*`.
"""

import base64
import hashlib
from collections.abc import Iterable

from cbrrr import CID, encode_dag_cbor

CID_PREFIX = b"\x01\x71\x12\x20"

Block = tuple[bytes, bytes]
"""(cid, bytes)"""


def cid_of(block: bytes) -> bytes:
    """The CID of a DAG-CBOR block."""
    return CID_PREFIX + hashlib.sha256(block).digest()


def cid_text(cid: bytes) -> str:
    """The base32 text form, `bafyrei…`."""
    return "b" + base64.b32encode(cid).decode().rstrip("=").lower()


def varint(number: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_LENGTHS = [varint(number) for number in range(4096)]


def car_header(root: bytes) -> bytes:
    """The header of a CAR with one root, with its length prefix."""
    header = encode_dag_cbor({"roots": [CID(root)], "version": 1})
    return varint(len(header)) + header


def car_head(block: bytes, cid: bytes) -> bytes:
    """The length prefix of a block section: the size of CID and block."""
    size = len(block) + len(cid)
    return _LENGTHS[size] if size < 4096 else varint(size)


def write_car(root: bytes, blocks: Iterable[Block]) -> bytes:
    """A whole CAR in memory."""
    parts = [car_header(root)]
    for cid, block in blocks:
        parts += (car_head(block, cid), cid, block)
    return b"".join(parts)
