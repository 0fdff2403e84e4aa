"""A verified snapshot → the messages of one attempt: a `create` for every record, then the outcome that closes it.

Values are encoded JSON for `firehose_backfill`; the key of all of them is the DID. A record is sent without its body, with a
reason, if it does not fit into a message, if its block is missing, or if its path is not a record's. It still counts, so that
rows and `count` agree and the rows rebuild the tree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from protocol.cid import cid_str
from protocol.encoding.record_json import BodyReason, RecordBody, leaf_body
from protocol.encoding.unpadded_base64 import to_base64
from protocol.snapshot import Snapshot, SnapshotHead
from schemas import wire

_KEPT_BLOCKS = 10_000
_KEPT_FROM_BYTES = 1024  # bytes of a block


@dataclass(frozen=True, slots=True)
class Attempt:
    """Fields common to the messages of an attempt. `time`: when it was fetched; `account_*`: the ratchet as of the claim."""

    did: str
    number: int
    time: str
    account_time: str = ""
    account_seq: int = 0
    account_relay: str = ""
    account_seen: str = ""
    host: str | None = None
    handle: str | None = None
    signing_key: str | None = None


def create_messages(snapshot: Snapshot, attempt: Attempt, limit_bytes: int) -> Iterator[bytes]:
    """One message per record, in key order; none is longer than `limit_bytes`."""
    head, did, number, time = snapshot.head, attempt.did, attempt.number, attempt.time
    rev, commit = head.rev, head.commit
    encode, raw_json, event = wire.encode, msgspec.Raw, wire.CreateEvent
    body_of = _Bodies().of
    for collection, rkey, cid, block, missing in snapshot.records():
        body = body_of(cid, block, missing)
        message = event(
            did=did,
            attempt=number,
            rev=rev,
            collection=collection,
            rkey=rkey,
            cid=cid_str(cid),
            time=time,
            commit=commit,
            record=wire.ABSENT if body.json is None else raw_json(body.json),
            raw=None if body.raw is None else to_base64(body.raw),
            reason=body.reason,
        )
        value = encode(message)
        if len(value) > limit_bytes:
            message.record, message.raw, message.reason = wire.ABSENT, None, BodyReason.TOO_LARGE
            value = encode(message)
        yield value


class _Bodies:
    """Bodies of leaves. A block that many leaves name is not decoded again if it was the last one, or has no JSON."""

    def __init__(self) -> None:
        self._bare: dict[bytes, BodyReason] = {}
        self._last = b""
        self._body = RecordBody(None, None, None)

    def of(self, cid: bytes, block: bytes | None, missing: BodyReason) -> RecordBody:
        """The body of a leaf."""
        if block is None or len(block) < _KEPT_FROM_BYTES:
            return leaf_body(cid, block, missing)
        if cid == self._last:
            return self._body
        reason = self._bare.get(cid)
        if reason is not None:
            return RecordBody(None, block, reason)
        self._last, self._body = cid, leaf_body(cid, block, missing)
        if self._body.json is None and self._body.reason is not None and len(self._bare) < _KEPT_BLOCKS:
            self._bare[cid] = self._body.reason
        return self._body


def synced_outcome(head: SnapshotHead, attempt: Attempt, count: int) -> bytes:
    """The outcome of a snapshot of `count` records."""
    return _outcome(
        attempt,
        "synced",
        active=True,
        rev=head.rev,
        commit=head.commit,
        commit_block=to_base64(head.commit_block),
        data=head.data,
        count=count,
    )


def unavailable_outcome(attempt: Attempt, status: str, *, deleted: bool) -> bytes:
    """The outcome of an account that cannot be fetched. `status`: why (takendown, deactivated, not_found, …)."""
    return _outcome(attempt, "deleted" if deleted else "unavailable", active=False, reason=status)


def _outcome(attempt: Attempt, status: Literal["synced", "unavailable", "deleted"], **fields: Any) -> bytes:
    return wire.encode(
        wire.RepoOutcome(
            did=attempt.did,
            attempt=attempt.number,
            status=status,
            time=attempt.time,
            account_time=attempt.account_time,
            account_seq=attempt.account_seq,
            account_relay=attempt.account_relay,
            account_seen=attempt.account_seen,
            host=attempt.host,
            handle=attempt.handle,
            signing_key=attempt.signing_key,
            **fields,
        )
    )
