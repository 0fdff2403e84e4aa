"""Frames of an event stream: bytes → a typed message, or a typed rejection. Never raises on wire input.

A frame is two DAG-CBOR objects: a header `{op, t}` and a body. `op` 1 is a message, -1 an error. A message of an unknown type is
`Unknown` and still uses up its seq. Only the types of fields are checked here; `protocol.verify_commit` checks the blocks.

Source: the event-stream page of the specification, and the lexicons subscribeRepos and subscribeLabels.
"""

from enum import StrEnum
from typing import Any, Final

import libipld
import msgspec

from protocol.cid import CID_SIZE, DAG_CBOR
from protocol.encoding.cbor_scan import MAX_DEPTH, ScanError, integer_field, nested_deeper, scan, scan_all
from protocol.encoding.safe_text import failure, printable, shown
from protocol.syntax import is_did, is_handle, is_tid

MAX_FRAME_BYTES: Final = 5_000_000
"""Bytes of a frame at most. A larger one becomes a dead letter; its seq is still read."""
MAX_SOCKET_BYTES: Final = 16 * 1024 * 1024
"""Bytes of a websocket message at most. A larger one closes the connection before it is received."""
MAX_ITEMS: Final = 50_000
"""CBOR items of a frame at most. A commit of 200 operations has about 2,500, a label 20."""
MAX_LABELS: Final = 2_000
"""Labels of a frame at most. The official labeler sends one."""
MAX_DID_BYTES: Final = 1024
"""Bytes of a DID at most: with a path of 1,024 bytes it must fit into an index entry of 2,704. Resolvable DIDs have 270 or less."""
SCAN_BYTES: Final = 16 * 1024
"""Bytes of a frame above which its items are counted before decoding."""


class FrameReason(StrEnum):
    UNDECODABLE = "undecodable"
    BAD_HEADER = "bad_header"
    BAD_FIELD = "bad_field"
    TOO_LARGE = "too_large"
    FAILED = "failed"


class Commit(
    msgspec.Struct, frozen=True, gc=False
):  # Structs: creating a frozen dataclass costs more than the decoding
    """#commit. CIDs are 36 bytes; the fields of `ops` are unchecked; `data_before` is prevData."""

    seq: int
    did: str
    rev: str
    time: "object"
    since: str | None
    commit: bytes
    blocks: bytes
    ops: list[Any]
    data_before: bytes | None
    no_blocks: bool  # tooBig or rebase: the ops are not complete
    wrong_field: str = (
        ""  # a field of a wrong type, which is empty here; the signed commit in the blocks may still be valid
    )


class Sync(msgspec.Struct, frozen=True, gc=False):
    """#sync: `blocks` is a CAR of the commit block alone."""

    seq: int
    did: str
    rev: str
    time: "object"
    blocks: bytes
    wrong_field: str = ""  # as in Commit


class Identity(msgspec.Struct, frozen=True, gc=False):
    """#identity."""

    seq: int
    did: str
    time: "object"
    handle: str | None


class Account(msgspec.Struct, frozen=True, gc=False):
    """#account."""

    seq: int
    did: str
    time: "object"
    active: bool
    status: str | None


class Labels(msgspec.Struct, frozen=True, gc=False):
    """#labels. The fields of `labels` are unchecked."""

    seq: int
    labels: list[Any]


class Info(msgspec.Struct, frozen=True, gc=False):
    """#info, such as OutdatedCursor. It has no seq."""

    name: str
    message: str


class StreamError(msgspec.Struct, frozen=True, gc=False):
    """An error frame; the connection ends after it."""

    error: str
    message: str


class Unknown(msgspec.Struct, frozen=True, gc=False):
    """A message of an unknown type."""

    kind: str
    seq: int | None


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """Not a valid frame, or a message without a required field. `seq`, `did`: if they could be read."""

    reason: FrameReason
    detail: str
    seq: int | None = None
    did: str | None = None


Event = Commit | Sync | Identity | Account
Message = Event | Labels | Info | StreamError | Unknown | Rejected

_MAX_SEQ: Final = 2**63 - 1
_decode = libipld.decode_dag_cbor_multi


def decode(frame: bytes) -> Message:
    """Decode a frame. About 4 µs."""
    try:
        return _decoded(frame)
    except Exception as err:  # a defect in our code loses this frame, not the stream
        return Rejected(FrameReason.FAILED, failure(err))


def _decoded(frame: bytes) -> Message:
    if len(frame) > MAX_FRAME_BYTES:
        return Rejected(FrameReason.TOO_LARGE, f"{len(frame)} bytes", sequence(frame))
    try:
        if len(frame) > SCAN_BYTES:
            scan_all(frame, MAX_ITEMS, 2)
        parts = _decode(frame)
    except ScanError as refused:
        reason = FrameReason.TOO_LARGE if refused.too_large else FrameReason.UNDECODABLE
        return Rejected(reason, str(refused), sequence(frame))
    except (ValueError, RecursionError) as err:
        return Rejected(FrameReason.UNDECODABLE, str(err)[:200])
    if nested_deeper(parts):
        return Rejected(FrameReason.UNDECODABLE, f"nested more than {MAX_DEPTH} deep", sequence(frame))
    if len(parts) != 2:
        return Rejected(FrameReason.BAD_HEADER, f"{len(parts)} objects instead of a header and a body")
    header, body = parts
    if type(header) is not dict or type(body) is not dict:
        return Rejected(FrameReason.BAD_HEADER, "header and body must be maps")
    op = header.get("op")
    if op == -1 and type(op) is int:
        return StreamError(_short(body.get("error")), _short(body.get("message")))
    kind = header.get("t")
    if op != 1 or type(op) is not int or type(kind) is not str:
        return Rejected(FrameReason.BAD_HEADER, f"op {shown(op, 20)}, t {shown(kind, 40)}", _seq(body))
    reader = _READERS.get(kind)
    if reader is None:
        return Unknown(printable(kind, 100), _seq(body))
    try:
        return reader(body)
    except _BadField as field:
        did = body.get("repo", body.get("did"))
        return Rejected(FrameReason.BAD_FIELD, f"{kind}: {field}", _seq(body), did if _is_did(did) else None)


def sequence(frame: bytes) -> int | None:
    """The seq of a frame of any type and size, or None. Does not decode the frame."""
    try:
        behind = scan(frame, 0, MAX_ITEMS).end
    except ScanError:
        return None
    seq = integer_field(frame, behind, b"seq", MAX_ITEMS)
    return seq if seq is not None and seq <= _MAX_SEQ else None


def position(frame: bytes) -> int | None:
    """The seq of a frame that decodes completely, else None: only such a frame may move a cursor."""
    message = decode(frame)
    if isinstance(message, Commit | Sync) and message.wrong_field:
        return None
    return message.seq if isinstance(message, Event | Labels) else None


class _BadField(Exception):
    """A field is missing or has a wrong type. The message is its name."""


def _commit(body: dict[str, Any]) -> Message:
    get = body.get
    commit, blocks, ops, rev = get("commit"), get("blocks"), get("ops"), get("rev")
    since, before = get("since"), get("prevData")
    no_blocks = get("tooBig", False) is not False or get("rebase", False) is not False
    did = get("repo")
    _need(_is_did(did), "repo")
    _need(type(blocks) is bytes, "blocks")
    wrong = ""
    if type(commit) is not bytes or len(commit) != CID_SIZE or commit[:4] != DAG_CBOR:
        commit, wrong = b"", "commit"
    if type(ops) is not list:
        ops, wrong = [], "ops"
    if type(rev) is not str or not is_tid(rev):
        rev, wrong = "", "rev"
    if since is not None and (type(since) is not str or (since != "" and not is_tid(since))):
        since, wrong = None, "since"
    if before is not None and (type(before) is not bytes or len(before) != CID_SIZE):
        before, wrong = None, "prevData"
    return Commit(_need_seq(body), did, rev, get("time"), since or None, commit, blocks, ops, before, no_blocks, wrong)  # type: ignore[arg-type]  # checked above


def _sync(body: dict[str, Any]) -> Message:
    did, rev, blocks = body.get("did"), body.get("rev"), body.get("blocks")
    _need(_is_did(did), "did")
    _need(type(blocks) is bytes, "blocks")
    wrong = ""
    if type(rev) is not str or not is_tid(rev):
        rev, wrong = "", "rev"
    return Sync(_need_seq(body), did, rev, body.get("time"), blocks, wrong)  # type: ignore[arg-type]  # checked above


def _identity(body: dict[str, Any]) -> Message:
    did, handle = body.get("did"), body.get("handle")
    _need(_is_did(did), "did")
    claimed = handle if type(handle) is str and is_handle(handle) else None
    return Identity(_need_seq(body), did, body.get("time"), claimed)  # type: ignore[arg-type]  # checked by _need


def _account(body: dict[str, Any]) -> Message:
    did, active, status = body.get("did"), body.get("active"), body.get("status")
    _need(_is_did(did), "did")
    _need(type(active) is bool, "active")
    status = printable(status, 100) if type(status) is str else None
    return Account(_need_seq(body), did, body.get("time"), active, status)  # type: ignore[arg-type]  # checked by _need


def _labels(body: dict[str, Any]) -> Message:
    labels = body.get("labels")
    _need(type(labels) is list, "labels")
    if len(labels) > MAX_LABELS:  # type: ignore[arg-type]  # checked by _need
        return Rejected(FrameReason.TOO_LARGE, f"{len(labels)} labels", _need_seq(body))  # type: ignore[arg-type]
    return Labels(_need_seq(body), labels)  # type: ignore[arg-type]  # checked by _need


def _info(body: dict[str, Any]) -> Message:
    return Info(_short(body.get("name")), _short(body.get("message")))


_READERS: Final = {
    "#commit": _commit,
    "#sync": _sync,
    "#identity": _identity,
    "#account": _account,
    "#labels": _labels,
    "#info": _info,
}


def _need(good: bool, field: str) -> None:
    if not good:
        raise _BadField(field)


def _need_seq(body: dict[str, Any]) -> int:
    seq = body.get("seq")
    if type(seq) is not int or not 0 <= seq <= _MAX_SEQ:
        raise _BadField("seq")
    return seq


def _seq(body: dict[str, Any]) -> int | None:
    seq = body.get("seq")
    return seq if type(seq) is int and 0 <= seq <= _MAX_SEQ else None


def _is_did(value: object) -> bool:
    return type(value) is str and len(value) <= MAX_DID_BYTES and is_did(value)


def _short(value: object) -> str:
    return printable(value) if type(value) is str else ""
