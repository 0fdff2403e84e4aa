"""CIDs as bytes and text.

The network uses two kinds: CIDv1 with SHA-256, of DAG-CBOR or raw blocks. Both have 36 bytes or 59 characters, so a conversion
takes 0.2 µs. A leaf of a tree may use another codec or hash function (`is_any_cid`): such a record gets a row, but its block is
neither checked nor stored.
"""

from hashlib import sha256
from typing import Final

import libipld

CID_SIZE: Final = 36
DAG_CBOR: Final = b"\x01\x71\x12\x20"
"""Prefix of a CIDv1 of a DAG-CBOR block, SHA-256, 32 bytes."""
RAW: Final = b"\x01\x55\x12\x20"
"""The same for a raw block (blobs)."""
_TEXT_SIZE: Final = 59
_RAW_TEXT: Final = "bafkrei"
_LONGEST_DIGEST: Final = 64
_LONGEST_CID: Final = 1 + 9 + 9 + 1 + _LONGEST_DIGEST
_LONGEST_TEXT: Final = 1 + (_LONGEST_CID * 8 + 4) // 5
_V0: Final = b"\x12\x20"
_V0_SIZE: Final = 34
_OURS: Final = (DAG_CBOR, RAW)


def is_cid(raw: bytes) -> bool:
    """Whether these bytes are a CID of the network's two kinds."""
    return len(raw) == CID_SIZE and raw[:4] in _OURS


def is_any_cid(raw: bytes) -> bool:
    """Whether these bytes are a CID of any codec and hash function, with a digest of at most 64 bytes."""
    if len(raw) == CID_SIZE and raw[:4] in _OURS:
        return True
    if len(raw) == _V0_SIZE and raw[:2] == _V0:
        return True
    if not 4 <= len(raw) <= _LONGEST_CID or raw[0] != 1:
        return False
    at = 1
    for _ in range(2):  # codec, hash function
        end = at
        while end < len(raw) and raw[end] >= 0x80:
            end += 1
        if end >= len(raw) - 1 or end - at >= 9 or (end > at and raw[end] == 0):
            return False
        at = end + 1
    return raw[at] <= _LONGEST_DIGEST and len(raw) == at + 1 + raw[at]


def cid_str(raw: bytes) -> str:
    """CID bytes → "b…", or "Qm…" for version 0. Raises ValueError for bytes that are not a CID."""
    if len(raw) != CID_SIZE and not is_any_cid(raw):
        raise ValueError(f"not a CID: {raw[:80].hex()}")
    text: str = libipld.encode_cid(raw)
    return text


def cid_bytes(text: str) -> bytes:
    """ "b…" → 36 bytes. Raises ValueError unless the text is the canonical form of a CID of the two kinds."""
    if len(text) == _TEXT_SIZE and text[0] == "b" and text == text.lower():
        raw: bytes = libipld.decode_multibase(text)[1]
        if is_cid(raw):
            return raw
    raise ValueError(f"not a CID: {text[:80]!r}")


def any_cid_bytes(text: str) -> bytes:
    """The bytes of a CID of any kind. Raises ValueError unless `cid_str` would write this text."""
    if len(text) <= _LONGEST_TEXT and text.isascii():
        raw: bytes = b""
        if text[:1] == "b":
            raw = libipld.decode_multibase(text)[1]
        elif text[:2] == "Qm":
            raw = _V0 + bytes(libipld.decode_cid(text)["hash"]["digest"])
        if is_any_cid(raw) and cid_str(raw) == text:
            return raw
    raise ValueError(f"not a CID: {text[:80]!r}")


def dag_cbor_cid(block: bytes) -> str:
    """The CID of a DAG-CBOR block, as text."""
    text: str = libipld.encode_cid(DAG_CBOR + sha256(block).digest())
    return text


def sha256_cid(block: bytes, like: str) -> str:
    """The CID of a block, as text: with the raw codec if `like` is the CID of a raw block, else DAG-CBOR."""
    text: str = libipld.encode_cid((RAW if like.startswith(_RAW_TEXT) else DAG_CBOR) + sha256(block).digest())
    return text
