"""Compact columns of `sluice.record_row`, which functions of the database turn back into text; and `sluice.repo.commit_block`.

`cid_column` and `tid_number` are `sluice.cid_bytes` and `sluice.tid_number`.
"""

import re
from base64 import b32decode, b32encode
from datetime import UTC, datetime
from functools import lru_cache

from protocol.cid import CID_SIZE, DAG_CBOR, any_cid_bytes, cid_bytes
from protocol.commit import usual_commit, usual_signature
from protocol.encoding.timestamps import canonical
from protocol.keys import SIGNATURE_SIZE
from protocol.syntax import tid_number

EPOCH = "1970-01-01T00:00:00.000Z"
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_BASE32 = re.compile("b[a-z2-7]{7,}").fullmatch
_HASH_SIZE = 32
_WHOLE = (0, 2, 4, 5, 7)  # letters after the last eight that are whole bytes
_CACHED = 4096  # the records of a snapshot have one rev and, mostly, one time


def cid_column(text: str) -> bytes:
    """The stored form of a CID. Of text that is not in canonical form: a zero byte, which no CID begins with, and the text."""
    try:
        raw = cid_bytes(text)
        return raw[4:] if raw.startswith(DAG_CBOR) else _stored(raw)
    except ValueError:
        return _stored(_odd_cid(text) or b"\0" + text.encode())


def _stored(raw: bytes) -> bytes:
    """Of a DAG-CBOR CID the hash alone; other bytes as they are, except that 32 of them have 0xff before them."""
    if len(raw) == CID_SIZE and raw[:4] == DAG_CBOR:
        return raw[4:]
    return b"\xff" + raw if len(raw) == _HASH_SIZE else raw


def _odd_cid(text: str) -> bytes | None:
    """The bytes of a CID of another kind: version 0, or any base 32 that begins with a version of 1."""
    if not _BASE32(text):
        try:
            return any_cid_bytes(text)
        except ValueError:
            return None
    raw = b32decode(text[1:].upper() + "=" * (-(len(text) - 1) % 8)) if (len(text) - 1) % 8 in _WHOLE else b""
    return raw if raw[:1] == b"\1" and b32encode(raw).decode().lower().rstrip("=") == text[1:] else None


def block_column(block: bytes, did: str, rev: str, data: str | None) -> bytes:
    """The stored form of a commit block: its signature if the row has all the rest, otherwise the block."""
    try:
        return usual_signature(block, did, rev, cid_bytes(data or "")) or block
    except ValueError:
        return block


def commit_block(column: bytes | None, did: str, rev: str, data: str | None) -> bytes | None:
    """The inverse of `block_column`. If the row's data is no CID, the bytes as they are."""
    if column is None or len(column) != SIGNATURE_SIZE:
        return column
    try:
        return usual_commit(did, rev, cid_bytes(data or ""), column)
    except ValueError:
        return column


@lru_cache(_CACHED)
def rev_column(rev: str) -> int:
    """The number of a rev. Raises ValueError if it is not a TID."""
    return tid_number(rev)


@lru_cache(_CACHED)
def time_column(text: str) -> int:
    """Microseconds since 2000, as PostgreSQL sends a timestamptz; to the millisecond. A text that is no time counts as 1970."""
    moment = datetime.fromisoformat(canonical(text) or EPOCH)
    return (moment - _POSTGRES_EPOCH) // _MICROSECOND


_MICROSECOND = _POSTGRES_EPOCH.resolution
