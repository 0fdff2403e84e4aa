"""Live commits: a #commit or #sync → what its blocks prove, or a typed refusal. Never raises on wire input.

Checked here: the CAR's hashes, its root is the commit, the commit's own DID, rev and version agree with the event, the rev is
no later than five minutes from now, and the ops have a form that can be applied. Still to come, in this function and behind
this signature: the commit's signature under the account's key, and the inversion of the ops on the partial tree, which proves
that they lead from `data_before` to `data`.
"""

from enum import StrEnum

import msgspec

from steps.car import CarError, CarLimits, index_bytes
from steps.cid import CID_SIZE
from steps.commit import CommitRejected, parse_commit
from steps.frames import Commit, Sync
from steps.mst_node import MAX_KEY
from steps.paths import row_path
from steps.syntax import tid_micros

FUTURE_MICROS = 300 * 1_000_000
MAX_OPS = 10_000  # the specification says 200; no op list of an honest frame is near this
_LIMITS = CarLimits(blocks=100_000, total=16 << 20)


class VerifyReason(StrEnum):
    """Why an event of a repo was refused."""

    BAD_CAR = "bad_car"
    ROOT_IS_NOT_COMMIT = "root_is_not_commit"
    NO_COMMIT_BLOCK = "no_commit_block"
    BAD_COMMIT = "bad_commit"
    WRONG_DID = "wrong_did"
    WRONG_REV = "wrong_rev"
    FUTURE_REV = "future_rev"
    BAD_OPS = "bad_ops"


class VerifiedOp(msgspec.Struct, frozen=True, gc=False):
    """An op. CIDs are 36 bytes, `cid` None for a delete. Not `valid`: the path is none of a record (see `steps.paths`)."""

    action: str
    collection: str
    rkey: str
    cid: bytes | None
    prev: bytes | None
    valid: bool = True


class Verified(msgspec.Struct, frozen=True, gc=False):
    """What the blocks say. `ops` is None where the operations are unknown (tooBig, rebase, or ops that make no sense)."""

    event: Commit | Sync
    commit: bytes
    commit_block: bytes
    data: bytes
    ops: list[VerifiedOp] | None
    blocks: dict[bytes, bytes]
    bad_paths: int = 0
    problem: str | None = None


class Refused(msgspec.Struct, frozen=True, gc=False):
    """An event that proves nothing."""

    reason: VerifyReason
    detail: str


def verify(event: Commit | Sync, now_micros: int) -> Verified | Refused:
    """Check an event at this moment (microseconds since 1970)."""
    if tid_micros(event.rev) > now_micros + FUTURE_MICROS:
        return Refused(VerifyReason.FUTURE_REV, event.rev)
    try:
        car = index_bytes(event.blocks, limits=_LIMITS)
    except CarError as err:
        return Refused(VerifyReason.BAD_CAR, str(err)[:200])
    root, blocks = car.root or b"", car.blocks
    is_commit = type(event) is Commit
    if is_commit and root != event.commit:  # type: ignore[union-attr]  # the line above
        return Refused(VerifyReason.ROOT_IS_NOT_COMMIT, root.hex())
    block = blocks.get(root)
    if block is None:
        return Refused(VerifyReason.NO_COMMIT_BLOCK, root.hex())
    commit = parse_commit(block)
    if isinstance(commit, CommitRejected):
        return Refused(VerifyReason.BAD_COMMIT, f"{commit.reason}: {commit.detail}")
    if commit.did != event.did:
        return Refused(VerifyReason.WRONG_DID, commit.did[:200])
    if commit.rev != event.rev:
        return Refused(VerifyReason.WRONG_REV, commit.rev)
    if type(event) is not Commit or event.no_blocks:
        return Verified(event, root, block, commit.data, None, {})
    ops, bad_paths, problem = _ops(event.ops)
    return Verified(event, root, block, commit.data, ops, blocks, bad_paths, problem)


def _ops(ops: list[object]) -> tuple[list[VerifiedOp] | None, int, str | None]:
    """Ops in order, how many have a path that no record can have, and why they are none at all."""
    if len(ops) > MAX_OPS:
        return None, 0, f"{len(ops)} ops"
    good: list[VerifiedOp] = []
    paths: set[str] = set()
    bad_paths = 0
    for op in ops:
        if type(op) is not dict:
            return None, 0, "an op is not a map"
        action, path, cid, prev = op.get("action"), op.get("path"), op.get("cid"), op.get("prev")
        if type(path) is not str or path in paths:
            return None, 0, f"path {path!r:.200} is missing or given twice"
        key = path.encode().decode("latin-1")
        if len(key) > MAX_KEY:
            return None, 0, f"a path of {len(key)} bytes"
        if action in ("create", "update"):
            if type(cid) is not bytes or len(cid) != CID_SIZE:
                return None, 0, f"no CID at {path[:200]}"
        elif action != "delete" or cid is not None:
            return None, 0, f"action {action!r:.20} at {path[:200]}"
        if prev is not None and (type(prev) is not bytes or len(prev) != CID_SIZE):
            return None, 0, f"prev of {path[:200]}"
        paths.add(path)
        collection, rkey, valid = row_path(key)
        bad_paths += not valid  # as a record it cannot be addressed, but the tree holds it
        good.append(VerifiedOp(action, collection, rkey, cid, prev, valid))
    return good, bad_paths, None
