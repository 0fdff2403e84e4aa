"""Commit objects of a repo: block → CommitObject | CommitRejected, and the check of their signature. Never raises on wire input.

The signature covers the same object without `sig`, encoded again. `prev: null` and unknown fields stay in it.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import cbrrr
import msgspec

from protocol.cid import CID_SIZE, DAG_CBOR
from protocol.encoding.safe_text import shown
from protocol.keys import SIGNATURE_SIZE, verify
from protocol.syntax import is_did, is_tid

VERSION: Final = 3
_MAX_COMMIT: Final = 16 * 1024
_AFTER_SIGNATURE: Final = 61
"""Bytes of a usual commit behind its signature: data, prev and version."""


class CommitReason(StrEnum):
    UNDECODABLE = "undecodable"
    BAD_FIELD = "bad_field"
    BAD_VERSION = "bad_version"


class CommitObject(msgspec.Struct, frozen=True, gc=False):
    """`data`: CID bytes of the tree's root. `prev`: CID bytes or None. `unsigned_bytes`: what `sig` (64 bytes) signs."""

    did: str
    rev: str
    data: bytes
    prev: bytes | None
    version: int
    sig: bytes
    unsigned_bytes: bytes


class CommitRejected(msgspec.Struct, frozen=True, gc=False):
    reason: CommitReason
    detail: str


def parse_commit(block: bytes) -> CommitObject | CommitRejected:
    if len(block) > _MAX_COMMIT:
        return CommitRejected(CommitReason.UNDECODABLE, f"{len(block)} bytes")
    try:
        value: Any = cbrrr.decode_dag_cbor(block)
    except (ValueError, RecursionError) as err:
        return CommitRejected(CommitReason.UNDECODABLE, str(err)[:200])
    if not isinstance(value, dict):
        return CommitRejected(CommitReason.UNDECODABLE, "not a map")
    version = value.get("version")
    if type(version) is not int or version != VERSION:
        return CommitRejected(CommitReason.BAD_VERSION, shown(version, 40))
    bad = next((name for name, good in _FIELDS.items() if not good(value.get(name))), None)
    if bad is not None:
        return CommitRejected(CommitReason.BAD_FIELD, bad)
    sig = value.pop("sig")
    unsigned = cbrrr.encode_dag_cbor(value)  # strict decoding guarantees the same bytes
    prev = value.get("prev")
    prev_bytes = None if prev is None else prev.cid_bytes
    return CommitObject(value["did"], value["rev"], value["data"].cid_bytes, prev_bytes, version, sig, unsigned)


def usual_commit(did: str, rev: str, data: bytes, sig: bytes) -> bytes:
    """The block of a commit of the usual fields: version 3, prev null, nothing else. `data`: CID bytes."""
    fields: dict[str, Any] = {
        "did": did,
        "rev": rev,
        "data": cbrrr.CID(data),
        "prev": None,
        "version": VERSION,
        "sig": sig,
    }
    return cbrrr.encode_dag_cbor(fields)


def usual_signature(block: bytes, did: str, rev: str, data: bytes) -> bytes | None:
    """The signature with which `usual_commit` gives exactly this block; None if there is none."""
    sig = block[-_AFTER_SIGNATURE - SIGNATURE_SIZE : -_AFTER_SIGNATURE]
    return sig if usual_commit(did, rev, data, sig) == block else None


def verify_commit(commit: CommitObject, signing_key: str) -> bool:
    """Whether the key (did:key) signed this commit."""
    return verify(signing_key, commit.unsigned_bytes, commit.sig)


def _is_tree(value: object) -> bool:
    return isinstance(value, cbrrr.CID) and len(value.cid_bytes) == CID_SIZE and value.cid_bytes[:4] == DAG_CBOR


_FIELDS: dict[str, Callable[[object], bool]] = {
    "did": lambda did: isinstance(did, str) and is_did(did),
    "rev": lambda rev: isinstance(rev, str) and is_tid(rev),
    "data": _is_tree,
    "prev": lambda prev: prev is None or _is_tree(prev),
    "sig": lambda sig: isinstance(sig, bytes) and len(sig) == SIGNATURE_SIZE,
}
