"""Labels of a #labels frame: parsing, the key of a subject, and the check of a signature. Never raises on wire input.

`parse_label` normalises times, so that text order is time order. It keeps `sig` as bytes and does not check it: the signature
covers the label as it was in the frame, so `label_signed` takes that map.

The subject of a label is any URI: an account's DID, a record, a web page, an AT-URI with a handle.
"""

import re
from enum import StrEnum
from hashlib import sha256
from typing import Any

import libipld
import msgspec

from protocol.cid import cid_bytes
from protocol.encoding.safe_text import failure, shown
from protocol.encoding.timestamps import canonical
from protocol.keys import verify
from protocol.syntax import is_did

MAX_VALUE_CHARACTERS = 128
MAX_URI_CHARACTERS = 8192
_MAX_SIG = 256
MAX_KEY_BYTES = 2600
"""Of src, uri, val and cid together: an entry of the primary key's index in PostgreSQL holds 2,704 bytes."""
_SUBJECT_HASH_CHARACTERS = 32
_uri = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,63}:(?://)?[^/\s\x00-\x1f\x7f-\x9f][^\s\x00-\x1f\x7f-\x9f]*").fullmatch
_SIGNED = ("ver", "src", "uri", "cid", "val", "neg", "cts", "exp")


class LabelReason(StrEnum):
    NOT_A_MAP = "not_a_map"
    BAD_VERSION = "bad_version"
    BAD_SRC = "bad_src"
    BAD_URI = "bad_uri"
    BAD_VAL = "bad_val"
    BAD_CTS = "bad_cts"
    BAD_EXP = "bad_exp"
    BAD_CID = "bad_cid"
    BAD_NEG = "bad_neg"
    BAD_SIG = "bad_sig"
    BAD_SIGNATURE = "bad_signature"
    NO_KEY = "no_key"
    FAILED = "failed"


class Label(msgspec.Struct, frozen=True, gc=False):
    """A label whose fields have the types and limits of the lexicon. `cts` and `exp` are canonical, `neg` has its default."""

    src: str
    uri: str
    val: str
    cts: str
    cid: str | None
    neg: bool
    exp: str | None
    sig: bytes | None


class LabelRejected(msgspec.Struct, frozen=True, gc=False):
    """Why a value is not a valid label. `detail` is safe to print."""

    reason: LabelReason
    detail: str


def parse_label(value: object) -> Label | LabelRejected:
    """Check one value of a frame's `labels`."""
    try:
        return _parse(value)
    except Exception as err:  # a defect in our code loses this label, not the stream
        return LabelRejected(LabelReason.FAILED, failure(err))


def _parse(value: object) -> Label | LabelRejected:
    if type(value) is not dict:
        return LabelRejected(LabelReason.NOT_A_MAP, type(value).__name__)
    get = value.get
    if get("ver", 1) != 1:
        return LabelRejected(LabelReason.BAD_VERSION, shown(get("ver"), 40))
    src, uri, val = get("src"), get("uri"), get("val")
    if type(src) is not str or not is_did(src):
        return LabelRejected(LabelReason.BAD_SRC, shown(src))
    if type(uri) is not str or not _is_subject(uri):
        return LabelRejected(LabelReason.BAD_URI, shown(uri))
    if type(val) is not str or not 0 < len(val) <= MAX_VALUE_CHARACTERS or "\0" in val:
        return LabelRejected(LabelReason.BAD_VAL, shown(val))
    cts = canonical(get("cts"))
    if cts is None:
        return LabelRejected(LabelReason.BAD_CTS, shown(get("cts"), 80))
    exp = canonical(get("exp"))
    if exp is None and get("exp") is not None:
        return LabelRejected(LabelReason.BAD_EXP, shown(get("exp"), 80))
    neg = get("neg", False)
    if neg is not None and type(neg) is not bool:
        return LabelRejected(LabelReason.BAD_NEG, shown(neg, 40))
    cid, sig = get("cid"), get("sig")
    if cid is not None and not _is_cid(cid):
        return LabelRejected(LabelReason.BAD_CID, shown(cid, 100))
    size = sum(len(text.encode(errors="replace")) for text in (src, uri, val, cid or ""))
    if size > MAX_KEY_BYTES:
        return LabelRejected(LabelReason.BAD_URI, f"src, uri, val and cid have {size} bytes, more than {MAX_KEY_BYTES}")
    if sig is not None and (type(sig) is not bytes or len(sig) > _MAX_SIG):
        return LabelRejected(LabelReason.BAD_SIG, type(sig).__name__)
    return Label(src, uri, val, cts, cid, bool(neg), exp, sig)


def label_signed(value: dict[str, Any], key: str) -> bool:
    """Whether the key (did:key) signed a label. `value` is the map from the frame.

    Two encodings are tried: the map without `sig`, and the map as the official labeler signs it, which has only the eight
    fields of the lexicon and leaves out null values and a false `neg`.
    """
    sig = value.get("sig")
    if type(sig) is not bytes:
        return False
    bare = {name: field for name, field in value.items() if name != "sig"}
    plain = {name: value[name] for name in _SIGNED if value.get(name) is not None} | {"ver": value.get("ver", 1)}
    if not plain.get("neg"):
        plain.pop("neg", None)
    return _signs(key, bare, sig) or (plain != bare and _signs(key, plain, sig))


def _signs(key: str, value: dict[str, Any], sig: bytes) -> bool:
    try:
        return verify(key, libipld.encode_dag_cbor(value), sig)
    except Exception:  # a value that cannot be encoded cannot have been signed
        return False


def subject_key(uri: str) -> str:
    """The key of a subject's messages: the DID that the URI is or contains as its authority, else `uri:` and a hash of the URI."""
    did = uri[5:].partition("/")[0] if uri.startswith("at://") else uri
    return did if is_did(did) else f"uri:{sha256(uri.encode()).hexdigest()[:_SUBJECT_HASH_CHARACTERS]}"


def _is_subject(uri: str) -> bool:
    """Whether the text is a URI of any scheme (the lexicon's format `uri`) without white space and control characters."""
    return len(uri) <= MAX_URI_CHARACTERS and _uri(uri) is not None


def _is_cid(text: object) -> bool:
    if type(text) is not str:
        return False
    try:
        cid_bytes(text)
    except ValueError:
        return False
    return True
