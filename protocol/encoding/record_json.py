"""A record's block → JSON that hashes back to its CID, or lossy JSON and the block, or the block alone.

A CID becomes {"$link": "b…"} and a byte string {"$bytes": "…"} (unpadded base64). The JSON is one object in UTF-8, without lone
surrogates, at most MAX_DEPTH levels deep, with integers of 64 bits and a sign; PostgreSQL's type `json` accepts it. Never raises
on wire input.

    json set, raw None     JSON alone reproduces the CID (`body_cid`); reason None
    json set, raw set      the JSON is lossy and `raw` is exact; `reason` is why
    json None, raw set     the block has no JSON; `reason` is why
    json None, raw None    the block is missing, or not kept; `reason` is why (`leaf_body`, and the flows' encoders)

If the block is not canonical CBOR, or its text not UTF-8, and the official AppView reads it all the same, both are set with the
reason `not_canonical` or `invalid_utf8`.
"""

from enum import StrEnum
from typing import Any, Final

import cbrrr
import msgspec

from protocol.cid import DAG_CBOR, dag_cbor_cid, is_cid, sha256_cid
from protocol.encoding.cbor_scan import MAX_DEPTH, ScanError, scan
from protocol.encoding.loose_cbor import decode as decode_loosely
from protocol.encoding.unpadded_base64 import to_base64

MAX_ITEMS: Final = 100_000
"""CBOR items of a record at most, for JSON. That many empty lists take 12 MB; a block of 2 MB could have two million."""
SCAN_BYTES: Final = 64 * 1024
"""Bytes of a block above which items are counted before decoding."""
_MAJOR_TYPE: Final = 0xE0
_MAP: Final = 0xA0
_SAFE_INTEGER: Final = 2**53


class BodyReason(StrEnum):
    """Why a record's JSON is lossy or absent."""

    DOLLAR_KEY = "dollar_key"  # a map in the record has a key $link or $bytes
    FLOAT = "float"  # not in the data model, and has no unique form in JSON
    NOT_CANONICAL = "not_canonical"  # CBOR but not DAG-CBOR; JSON exists if the AppView reads it
    INVALID_UTF8 = "invalid_utf8"  # its JSON has U+FFFD
    TOO_DEEP = "too_deep"
    TOO_MANY_ITEMS = "too_many_items"  # more than MAX_ITEMS
    NOT_A_MAP = "not_a_map"
    UNDECODABLE = "undecodable"  # truncated, or bytes after the end
    RAW_BLOCK = "raw_block"  # the CID's codec is raw, so the block is not a record
    # no body at all
    FOREIGN_CID = "foreign_cid"  # another codec or hash function than the network's
    BAD_PATH = "bad_path"  # the path is not valid for a record
    MISSING_BLOCK = "missing_block"  # a live commit did not carry it
    TOO_LARGE = "too_large"  # the block, or the message that would carry it


class RecordBody(
    msgspec.Struct, frozen=True
):  # a Struct: creating a frozen dataclass takes a third of the decoding time
    """See the table at the top of the module. `reason` is a BodyReason or None."""

    json: bytes | None
    raw: bytes | None
    reason: BodyReason | None

    @property
    def size(self) -> int:
        """Bytes that the body takes in a message."""
        return len(self.json or b"") + len(self.raw or b"") * 4 // 3


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_from_cbor = cbrrr.decode_dag_cbor


def record_body(block: bytes) -> RecordBody:
    """The body of a DAG-CBOR block. About 3 µs for a post."""
    if len(block) > SCAN_BYTES and (beyond := _beyond_limits(block)) is not None:
        return RecordBody(None, block, beyond)
    try:
        value = _from_cbor(block, True)
        if block[0] & _MAJOR_TYPE != _MAP:  # not the value's type: a bare link or byte string becomes a dict too
            return RecordBody(None, block, BodyReason.NOT_A_MAP)
        json = _encode(value)
    except UnicodeDecodeError:
        return _loose_body(block, BodyReason.INVALID_UTF8)
    except RecursionError:
        return RecordBody(None, block, BodyReason.TOO_DEEP)
    except ValueError:  # covers CbrrrDecodeError
        return _unusual_body(block)
    # each level opens a bracket, so few brackets prove that the depth is within the limit
    if json.count(b"{") + json.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        return RecordBody(None, block, BodyReason.TOO_DEEP)
    return RecordBody(json, None, None)


def leaf_body(cid: bytes, block: bytes | None, missing: BodyReason) -> RecordBody:
    """The body of a leaf; the CID's codec decides how the block is read. `missing`: the reason if there is no block."""
    if block is not None and cid[:4] == DAG_CBOR:
        return record_body(block)
    if not is_cid(cid):
        return RecordBody(None, None, BodyReason.FOREIGN_CID)
    return RecordBody(None, None, missing) if block is None else RecordBody(None, block, BodyReason.RAW_BLOCK)


def body_block(json: bytes | None, raw: bytes | None = None) -> bytes:
    """The record's block, rebuilt from the stored body; `raw` has priority. It is the record's own only if it hashes to the CID.

    Raises ValueError if there is no body, or if `record_body` cannot have written the JSON.
    """
    if raw is not None:
        return raw
    if json is None:
        raise ValueError("a record without body has no block")
    try:
        return cbrrr.encode_dag_cbor(_decode(json), True)
    except (msgspec.DecodeError, TypeError, OverflowError, RecursionError) as err:
        raise ValueError(f"not a record's JSON: {err}") from err


def body_cid(json: bytes | None, raw: bytes | None = None, like: str = "") -> str:
    """The record's CID, computed from the stored body. `like`: the row's CID, for the codec of `raw`. Raises ValueError as `body_block`."""
    block = body_block(json, raw)
    return dag_cbor_cid(block) if raw is None else sha256_cid(block, like)


def _beyond_limits(block: bytes) -> BodyReason | None:
    """The limit that a large block exceeds, checked without decoding it: that could take seconds."""
    try:
        scan(block, 0, MAX_ITEMS, MAX_DEPTH + 1)  # a link at the deepest level counts as one more
    except ScanError as err:
        return BodyReason.TOO_MANY_ITEMS if err.too_large else BodyReason.TOO_DEEP if err.too_deep else None
    return None


def _unusual_body(block: bytes) -> RecordBody:
    """The slow path: a map with $link or $bytes, a float, CBOR that is not canonical, or not CBOR."""
    try:
        value = _from_cbor(block)
    except ValueError as err:
        reason = _decode_reason(str(err))
        if reason is BodyReason.NOT_CANONICAL:
            return _loose_body(block, reason)
        return RecordBody(None, block, reason)
    return _lossy_body(block, value, None)


def _loose_body(block: bytes, reason: BodyReason) -> RecordBody:
    """A block that is not DAG-CBOR for this reason, read as the official AppView reads it, if it does."""
    try:
        value = decode_loosely(block, MAX_DEPTH, any_text=reason is BodyReason.INVALID_UTF8)
    except UnicodeDecodeError:
        return _loose_body(block, BodyReason.INVALID_UTF8)
    except RecursionError:
        return RecordBody(None, block, BodyReason.TOO_DEEP)
    except ValueError:
        return RecordBody(None, block, reason)
    return _lossy_body(block, value, reason)


def _lossy_body(block: bytes, value: object, reason: BodyReason | None) -> RecordBody:
    """Lossy JSON and the block. Without `reason`, what JSON cannot represent is the reason."""
    if type(value) is not dict:
        return RecordBody(None, block, BodyReason.NOT_A_MAP)
    if _depth(value) > MAX_DEPTH:
        return RecordBody(None, block, BodyReason.TOO_DEEP)
    reasons: set[BodyReason] = set()
    json = _encode(_lossy(value, reasons))
    if reason is None:
        reason = BodyReason.DOLLAR_KEY if BodyReason.DOLLAR_KEY in reasons else BodyReason.FLOAT
    return RecordBody(json, block, reason)


def _lossy(value: object, reasons: set[BodyReason]) -> object:
    """CBOR types → JSON types; adds to `reasons` what JSON cannot represent. The caller has limited the depth."""
    if isinstance(value, dict):
        if "$link" in value or "$bytes" in value:
            reasons.add(BodyReason.DOLLAR_KEY)
        return {key: _lossy(item, reasons) for key, item in value.items()}
    if isinstance(value, list):
        return [_lossy(item, reasons) for item in value]
    if isinstance(value, cbrrr.CID):
        return {"$link": value.encode()}
    if isinstance(value, bytes):
        return {"$bytes": to_base64(value)}
    if isinstance(value, float):
        reasons.add(BodyReason.FLOAT)
        if value.is_integer() and abs(value) < _SAFE_INTEGER:  # JavaScript has one number type: 1.0 is an integer there
            return int(value)
    return value


def _decode_reason(error: str) -> BodyReason:
    """Read the reason from the message of cbrrr's one error class. A message about key order quotes keys of the record."""
    if error.startswith("non-canonical map key ordering"):
        return BodyReason.NOT_CANONICAL
    if "not enough bytes" in error or "end of buffer" in error:
        return BodyReason.UNDECODABLE
    if "NaN" in error or "Inf" in error:
        return BodyReason.FLOAT
    return BodyReason.NOT_CANONICAL


def _depth(value: object) -> int:
    """Nesting levels of maps and lists, counted iteratively up to MAX_DEPTH + 1."""
    depth = 0
    level: list[Any] = [value]
    while depth <= MAX_DEPTH:
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            break
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth
