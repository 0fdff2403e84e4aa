"""CIDs as this network uses them: CIDv1, dag-cbor or raw, SHA-256; 36 bytes, or 59 characters of base32.

Constant sizes make the conversions cheap: 0.2 µs each way.
"""

from hashlib import sha256

import libipld

CID_SIZE = 36
DAG_CBOR = b"\x01\x71\x12\x20"
"""Prefix of a CIDv1 of a DAG-CBOR block, SHA-256, 32 bytes."""
RAW = b"\x01\x55\x12\x20"
"""The same for a raw block (blobs)."""
_TEXT_SIZE = 59


def is_cid(raw: bytes) -> bool:
    """Whether these bytes are a CID of the two kinds above."""
    return len(raw) == CID_SIZE and raw[:4] in (DAG_CBOR, RAW)


def cid_str(raw: bytes) -> str:
    """36 CID bytes → "b…"; ValueError for bytes that are no CID of ours."""
    if len(raw) != CID_SIZE:
        raise ValueError(f"not a CID: {raw.hex()}")
    text: str = libipld.encode_cid(raw)
    return text


def cid_bytes(text: str) -> bytes:
    """ "b…" → 36 bytes; ValueError for anything that is not the one spelling of such a CID."""
    if len(text) == _TEXT_SIZE and text[0] == "b" and text.islower():
        raw: bytes = libipld.decode_multibase(text)[1]
        if is_cid(raw):
            return raw
    raise ValueError(f"not a CID: {text[:80]!r}")


def dag_cbor_cid(block: bytes) -> str:
    """The CID, as text, of a DAG-CBOR block."""
    text: str = libipld.encode_cid(DAG_CBOR + sha256(block).digest())
    return text
