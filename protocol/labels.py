"""Labels of a #labels frame → the messages of `label_live`, or a typed rejection. Never raises on wire input.

Times are normalised, so that the newest `cts` can be found by text order; `sig` stays as it came, in base64, and is checked
by `label_signed` from the label as it stood in the frame.

The subject of a label is any URI: an account's DID, a record, a web page, an AT-URI with a handle. The key of a message is the
subject's DID, or a hash of the URI where it has none.
"""

import re
from base64 import b64encode
from enum import StrEnum
from hashlib import sha256
from typing import Any

import libipld
import msgspec

from protocol.cid import cid_bytes
from protocol.encoding.shown import failure, shown
from protocol.encoding.timestamps import canonical
from protocol.keys import verify
from protocol.syntax import is_did
from schemas import wire

MAX_VALUE_CHARACTERS = 128
MAX_URI_CHARACTERS = 8192
_MAX_SIG = 256
MAX_KEY_BYTES = 2600
"""Of src, uri, val and cid together: an entry of the primary key's index in PostgreSQL holds 2,704 bytes."""
_SUBJECT_HASH_CHARACTERS = 32
_uri = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,63}:(?://)?[^/\s\x00-\x1f\x7f-\x9f][^\s\x00-\x1f\x7f-\x9f]*").fullmatch
_SIGNED = ("ver", "src", "uri", "cid", "val", "neg", "cts", "exp")


class LabelReason(StrEnum):
    """Why a label was refused."""

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
    """A message and its key: the DID of the label's subject, or a hash of the subject's URI where it has no DID."""

    key: str
    value: bytes


class LabelRejected(msgspec.Struct, frozen=True, gc=False):
    """A label that is none."""

    reason: LabelReason
    detail: str


def label(value: object, seq: int, labeler: str) -> Label | LabelRejected:
    """One label of a frame with this seq, from the labeler at this URL."""
    try:
        return _label(value, seq, labeler)
    except Exception as err:  # a fault of ours costs this label, not the stream
        return LabelRejected(LabelReason.FAILED, failure(err))


def _label(value: object, seq: int, labeler: str) -> Label | LabelRejected:
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
    message = wire.LabelEvent(
        seq=seq,
        src=src,
        uri=uri,
        val=val,
        cts=cts,
        cid=cid,
        neg=bool(neg),
        exp=exp,
        sig=None if sig is None else b64encode(sig).rstrip(b"=").decode(),
        relay=labeler,
    )
    return Label(subject_key(uri), wire.encode(message))


def label_signed(value: dict[str, Any], key: str) -> bool:
    """Whether the key (did:key) signed this label of a frame: as it came, or as the official labeler writes it.

    The latter leaves out a `neg` that is false and what is null, and knows eight fields.
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
    except Exception:  # what cannot be encoded again was not signed
        return False


def subject_key(uri: str) -> str:
    """The key of a subject's messages: the DID that the URI is or belongs to, otherwise `uri:` and a hash of the URI."""
    did = uri[5:].partition("/")[0] if uri.startswith("at://") else uri
    return did if is_did(did) else f"uri:{sha256(uri.encode()).hexdigest()[:_SUBJECT_HASH_CHARACTERS]}"


def _is_subject(uri: str) -> bool:
    """Whether a label may be about it: a URI of any scheme (the lexicon's format `uri`), without white space and controls."""
    return len(uri) <= MAX_URI_CHARACTERS and _uri(uri) is not None


def _is_cid(text: object) -> bool:
    if type(text) is not str:
        return False
    try:
        cid_bytes(text)
    except ValueError:
        return False
    return True
