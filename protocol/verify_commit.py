"""Live commits: a #commit or #sync → what its blocks prove, or a typed refusal. Never raises on wire input.

`verify` checks the event against its own blocks: the CAR's hashes; its root is the commit; DID, rev and version of the commit
match the event; the rev is at most five minutes ahead of now; the protocol's limits; and by inversion, that the operations lead
from the tree before to the tree that the commit signs. `signed` checks the signature with a key that the caller has found.

Only the commit block is signed. The rest of the frame is a claim of a PDS or relay. So a valid commit block is never refused
because of its frame: the result is `Verified` without operations, `problem` is the reason, and if the signature is valid the repo
has to be fetched. The rev of the result is the signed one.

The result is `Refused` (no commit of this account; no row may change), `Verified` with operations, or `Verified` without. A
`Verified` must not change any row until `signed` has confirmed its signature.
"""

from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace

from protocol.car import CarLimits, index_bytes, salvaged
from protocol.car_format import CarError
from protocol.cid import is_any_cid
from protocol.commit import CommitObject, CommitRejected, parse_commit, verify_commit
from protocol.encoding.safe_text import failure, shown
from protocol.enforcement import Enforcement
from protocol.event_stream import MAX_FRAME_BYTES, Commit, Sync
from protocol.mst.invert import NOT_GIVEN, Change, Unproven, UnprovenReason, invert
from protocol.mst.node import MAX_KEY
from protocol.mst.record_path import row_path
from protocol.syntax import FUTURE_MICROS, tid_micros

MAX_OPS: Final = 200
MAX_BLOCKS_BYTES: Final = 2_000_000
MAX_SYNC_BYTES: Final = 10_000
_LIMITS: Final = CarLimits(blocks=100_000, total=MAX_FRAME_BYTES)


class VerifyReason(StrEnum):
    """Why an event was refused, or why its operations are unknown."""

    NO_COMMIT_BLOCK = "no_commit_block"
    TOO_BIG_NO_BLOCK = "too_big_no_block"  # the detail is the event's rev
    BAD_COMMIT = "bad_commit"
    WRONG_DID = "wrong_did"
    FUTURE_REV = "future_rev"
    BAD_SIGNATURE = "bad_signature"
    NO_KEY = "no_key"
    # refused if no commit block is found; otherwise the operations are unknown
    BAD_CAR = "bad_car"
    BAD_FIELD = "bad_field"
    # the operations are unknown
    ROOT_IS_NOT_COMMIT = "root_is_not_commit"
    WRONG_REV = "wrong_rev"
    WRONG_PREV_DATA = "wrong_prev_data"
    OP_NOT_IN_TREE = "op_not_in_tree"
    BAD_TREE = "bad_tree"
    SYNC_TOO_LARGE = "sync_too_large"
    TOO_BIG = "too_big"
    BLOCKS_TOO_LARGE = "blocks_too_large"
    TOO_MANY_OPS = "too_many_ops"
    BAD_OPS = "bad_ops"
    DUPLICATE_PATH = "duplicate_path"
    MISSING_PROOF = "missing_proof"
    NO_PREV = "no_prev"
    MESSAGE_TOO_LARGE = "message_too_large"
    FAILED = "failed"


_BY_UNPROVEN: Final = {reason: VerifyReason(reason.value) for reason in UnprovenReason}


class VerifiedOp(msgspec.Struct, frozen=True, gc=False):
    """An operation. CIDs are of any kind; `cid` is None for a delete. `valid`: the path has the syntax of a record's."""

    action: str
    collection: str
    rkey: str
    cid: bytes | None
    prev: bytes | None
    valid: bool = True


class Refused(msgspec.Struct, frozen=True, gc=False):
    """An event that proves nothing; or, as `problem`, why the operations are unknown."""

    reason: VerifyReason
    detail: str
    did: str | None = None  # the repo that the event claims to be of


class Verified(msgspec.Struct, frozen=True, gc=False):
    """What the blocks of an event prove.

    `ops`: None if the operations are unknown; `problem` is then the reason, except for a #sync, which has none. `data_before`: the
    root before the operations, from the event or from the inversion. `counted`: failed checks under Enforcement.REPORT.
    """

    event: Commit | Sync
    commit: bytes
    commit_block: bytes
    signed: CommitObject
    data: bytes
    ops: list[VerifiedOp] | None
    blocks: dict[bytes, bytes]
    bad_paths: int = 0
    problem: Refused | None = None
    data_before: bytes | None = None
    counted: tuple[VerifyReason, ...] = ()


def verify(event: Commit | Sync, now_micros: int, enforcement: Enforcement = Enforcement.ENFORCE) -> Verified | Refused:
    """Check an event without its signature. `now_micros`: microseconds since 1970."""
    try:
        return _verify(event, now_micros, enforcement)
    except Exception as err:  # a defect in our code loses this event, not the stream
        return Refused(VerifyReason.FAILED, failure(err), event.did)


def _verify(event: Commit | Sync, now_micros: int, enforcement: Enforcement) -> Verified | Refused:
    kind = "#commit" if type(event) is Commit else "#sync"
    problem = Refused(VerifyReason.BAD_FIELD, f"{kind}: {event.wrong_field}") if event.wrong_field else None
    try:
        car = index_bytes(event.blocks, limits=_LIMITS)
        root, blocks = car.root, car.blocks
    except CarError as err:
        problem = problem or Refused(VerifyReason.BAD_CAR, str(err)[:200])
        root, blocks = salvaged(event.blocks, _LIMITS)
    found = _find_commit(event, root, blocks, problem)
    if isinstance(found, Refused):
        return replace(found, did=event.did)
    if tid_micros(found.signed.rev) > now_micros + FUTURE_MICROS:
        return Refused(VerifyReason.FUTURE_REV, found.signed.rev, event.did)
    if found.problem is not None:
        return found
    large = _too_large(event)
    counted = () if large is None else (large.reason,)
    if large is None or enforcement is Enforcement.REPORT:
        return _with_ops(found, blocks, enforcement, counted)
    return replace(found, problem=large)


def _find_commit(
    event: Commit | Sync, root: bytes | None, blocks: dict[bytes, bytes], problem: Refused | None
) -> Verified | Refused:
    """Find the account's commit among the blocks; the result has no operations. `problem`: an error of the frame found before."""
    named = event.commit if type(event) is Commit else root
    cid = root if named not in blocks and root is not None else named
    block = blocks.get(cid or b"")
    if cid is None or block is None:
        if type(event) is Commit and event.no_blocks and event.rev:
            return Refused(VerifyReason.TOO_BIG_NO_BLOCK, event.rev)
        return problem or Refused(VerifyReason.NO_COMMIT_BLOCK, (cid or b"").hex())
    commit = parse_commit(block)
    if isinstance(commit, CommitRejected):
        return problem or Refused(VerifyReason.BAD_COMMIT, f"{commit.reason}: {commit.detail}")
    if commit.did != event.did:
        return Refused(VerifyReason.WRONG_DID, commit.did[:200])
    if problem is None and (cid != named or cid != root):
        problem = Refused(VerifyReason.ROOT_IS_NOT_COMMIT, "" if root is None else root.hex())
    if commit.rev != event.rev:
        problem = problem or Refused(VerifyReason.WRONG_REV, f"{event.rev} instead of {commit.rev}")
        event = replace(event, rev=commit.rev)  # the signed rev counts
    return Verified(event, cid, block, commit, commit.data, None, {}, problem=problem)


def _with_ops(
    found: Verified, blocks: dict[bytes, bytes], enforcement: Enforcement, counted: tuple[VerifyReason, ...]
) -> Verified:
    """Add the operations, or the reason why they are unknown."""
    event = found.event
    if type(event) is not Commit:
        return replace(found, counted=counted) if counted else found
    if event.no_blocks:
        return replace(found, problem=Refused(VerifyReason.TOO_BIG, "the event has tooBig or rebase"))
    parsed = _ops(event.ops)
    if isinstance(parsed, Refused):
        return replace(found, problem=parsed)
    ops, changes, bad_paths = parsed
    before = event.data_before
    proof = _proof(event, found.data, blocks, changes)
    if not isinstance(proof, Refused):
        before = proof
    elif enforcement is Enforcement.REPORT:
        counted = (*counted, proof.reason)
    else:
        return replace(found, problem=proof)
    return Verified(
        event, found.commit, found.commit_block, found.signed, found.data, ops, blocks, bad_paths, None, before, counted
    )


def signed(verified: Verified, signing_key: str) -> bool:
    """Whether the key (did:key) signed the event's commit."""
    return verify_commit(verified.signed, signing_key)


def _too_large(event: Commit | Sync) -> Refused | None:
    size = len(event.blocks)
    if type(event) is Sync:
        return Refused(VerifyReason.SYNC_TOO_LARGE, f"{size} bytes of blocks") if size > MAX_SYNC_BYTES else None
    if size > MAX_BLOCKS_BYTES:
        return Refused(VerifyReason.BLOCKS_TOO_LARGE, f"{size} bytes of blocks")
    return Refused(VerifyReason.TOO_MANY_OPS, f"{len(event.ops)} ops") if len(event.ops) > MAX_OPS else None  # type: ignore[union-attr]  # a Commit


def _proof(event: Commit, data: bytes, blocks: dict[bytes, bytes], changes: list[Change]) -> bytes | Refused:
    """The root before the operations by inversion, or why it is unknown or contradicts the event."""
    try:
        before = invert(data, blocks.get, changes)
    except Unproven as err:
        return Refused(_BY_UNPROVEN[err.reason], err.detail[:200])
    if event.data_before is not None and before != event.data_before:
        return Refused(VerifyReason.WRONG_PREV_DATA, f"{before.hex()} instead of {event.data_before.hex()}")
    return before


def _ops(ops: list[object]) -> tuple[list[VerifiedOp], list[Change], int] | Refused:
    """The operations in order, their effects on the tree, and how many have an invalid path."""
    good: list[VerifiedOp] = []
    changes: list[Change] = []
    paths: set[str] = set()
    bad_paths = 0
    for op in ops:
        if type(op) is not dict:
            return Refused(VerifyReason.BAD_OPS, "an op is not a map")
        action, path, cid, prev = op.get("action"), op.get("path"), op.get("cid"), op.get("prev")
        if type(path) is not str:
            return Refused(VerifyReason.BAD_OPS, f"path {shown(path)}")
        if path in paths:
            return Refused(VerifyReason.DUPLICATE_PATH, path[:200])
        key = path.encode()
        if len(key) > MAX_KEY:
            return Refused(VerifyReason.BAD_OPS, f"a path of {len(key)} bytes")
        if action in ("create", "update"):
            if type(cid) is not bytes or not is_any_cid(cid):
                return Refused(VerifyReason.BAD_OPS, f"no CID at {path[:200]}")
        elif action != "delete" or cid is not None:
            return Refused(VerifyReason.BAD_OPS, f"action {shown(action, 20)} at {path[:200]}")
        if prev is not None and (type(prev) is not bytes or not is_any_cid(prev)):
            return Refused(VerifyReason.BAD_OPS, f"prev of {path[:200]}")
        paths.add(path)
        collection, rkey, valid = row_path(key.decode("latin-1"))
        bad_paths += not valid  # no valid record, but part of the tree
        good.append(VerifiedOp(action, collection, rkey, cid, prev, valid))
        changes.append(Change(key, cid, NOT_GIVEN if prev is None and action != "create" else prev))
    return good, changes, bad_paths
