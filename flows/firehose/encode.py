"""Verified events → the JSON messages of `firehose_live`. Pure; a message never exceeds MAX_VALUE_BYTES."""

from collections import Counter

import msgspec

from protocol.cid import cid_str, is_cid
from protocol.encoding.record_json import BodyReason, RecordBody, leaf_body
from protocol.encoding.timestamps import canonical
from protocol.encoding.unpadded_base64 import to_base64
from protocol.event_stream import Account, Commit, Identity
from protocol.verify_commit import Refused, Verified, VerifyReason
from schemas import wire
from schemas.topics import MAX_VALUE_BYTES

BODY_TIMES = 16
"""Bytes of a commit's bodies at most, as a multiple of its blocks. One byte of a record becomes at most 14 of JSON, so only a commit
that names one record many times needs more."""
BODY_LEAST = 64 * 1024
"""Bytes that the bodies of any commit may have."""
_JSON_TIMES = 14  # an empty byte string: 0x40 → {"$bytes":""},


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """A message. `problem`: why a commit became a #sync."""

    value: bytes
    problem: Refused | None = None
    missing: int = 0  # record blocks that the commit did not carry


def moment(text: object, now: str, latest: str) -> str:
    """The time to write: the event's own, or `now` if it is missing or later than `latest`."""
    own = canonical(text)
    return now if own is None or own > latest else own


def commit_message(verified: Verified, relay: str, time: str) -> Encoded:
    """The message of a #commit or #sync. A commit with unknown operations or too much JSON becomes a #sync, so that the repo is fetched."""
    event = verified.event
    if type(event) is not Commit or verified.ops is None:
        return Encoded(sync_value(verified, relay, time), verified.problem)
    bodies = _bodies(event, verified)
    if isinstance(bodies, Refused):
        return Encoded(sync_value(verified, relay, time), bodies)
    missing = 0
    ops: list[wire.Op] = []
    blocks = verified.blocks
    for op in verified.ops:
        prev = None if op.prev is None else cid_str(op.prev)
        if op.cid is None:
            ops.append(
                wire.Op(action="delete", collection=op.collection, rkey=op.rkey, prev=prev, raw=None, reason=None)
            )
            continue
        block = blocks.get(op.cid)
        if block is None and is_cid(op.cid):
            missing += 1
        why = BodyReason.MISSING_BLOCK if block is None else BodyReason.BAD_PATH
        body = bodies.get(op.cid) if op.valid else None
        body = body or leaf_body(op.cid, block if op.valid else None, why)
        ops.append(
            wire.Op(
                action=op.action,  # type: ignore[arg-type]  # create or update, checked by verify
                collection=op.collection,
                rkey=op.rkey,
                cid=cid_str(op.cid),
                prev=prev,
                record=wire.ABSENT if body.json is None else msgspec.Raw(body.json),
                raw=None if body.raw is None else to_base64(body.raw),
                reason=body.reason,
            )
        )
    value = wire.encode(
        wire.CommitEvent(
            seq=event.seq,
            time=time,
            did=event.did,
            rev=event.rev,
            since=event.since,
            commit=cid_str(verified.commit),
            commit_block=to_base64(verified.commit_block),
            data=cid_str(verified.data),
            prev_data=None if verified.data_before is None else cid_str(verified.data_before),
            ops=ops,
            relay=relay,
        )
    )
    if len(value) > MAX_VALUE_BYTES:
        problem = Refused(VerifyReason.MESSAGE_TOO_LARGE, f"message of {len(value)} bytes")
        return Encoded(sync_value(verified, relay, time), problem)
    return Encoded(value, None, missing)


def _bodies(event: Commit, verified: Verified) -> dict[bytes, RecordBody] | Refused:
    """The distinct bodies of a commit that may be too large; or the refusal, before any operation is encoded.

    Empty for ordinary commits: their records are distinct, and their JSON cannot exceed a message.
    """
    named = [op.cid for op in verified.ops or () if op.cid is not None and op.valid]
    if len(set(named)) == len(named) and _JSON_TIMES * len(event.blocks) <= MAX_VALUE_BYTES:
        return {}
    most = min(MAX_VALUE_BYTES, max(BODY_LEAST, BODY_TIMES * len(event.blocks)))
    blocks = verified.blocks
    times = {cid: count for cid, count in Counter(named).items() if cid in blocks}
    size = sum(len(blocks[cid]) * count for cid, count in times.items())  # JSON is at least as long
    bodies: dict[bytes, RecordBody] = {}
    for cid, count in times.items():
        if size > most:
            break
        body = bodies[cid] = leaf_body(cid, blocks[cid], BodyReason.MISSING_BLOCK)
        size += (body.size - len(blocks[cid])) * count
    if size > most:
        return Refused(
            VerifyReason.MESSAGE_TOO_LARGE, f"bodies of at least {size} bytes; the limit of this commit is {most}"
        )
    return bodies


def sync_value(verified: Verified, relay: str, time: str) -> bytes:
    """A #sync: the repo's rev and root, without operations."""
    event = verified.event
    return wire.encode(
        wire.SyncEvent(
            seq=event.seq,
            time=time,
            did=event.did,
            rev=event.rev,
            data=cid_str(verified.data),
            commit=cid_str(verified.commit),
            commit_block=to_base64(verified.commit_block),
            relay=relay,
        )
    )


def account_value(event: Account, relay: str, epoch: int, time: str) -> bytes:
    """An #account. `time`: at most the time of receipt. `epoch`: of the relay's sequence (steps/gate/ratchet.py)."""
    return wire.encode(
        wire.AccountEvent(
            seq=event.seq, time=time, did=event.did, active=event.active, status=event.status, relay=relay, epoch=epoch
        )
    )


def identity_value(event: Identity, relay: str, epoch: int, time: str) -> bytes:
    """An #identity, with `time` and `epoch` as in #account. The handle is an unverified hint, in lower case."""
    handle = event.handle.lower()[:253] if event.handle else None
    return wire.encode(
        wire.IdentityEvent(seq=event.seq, time=time, did=event.did, handle=handle, relay=relay, epoch=epoch)
    )
