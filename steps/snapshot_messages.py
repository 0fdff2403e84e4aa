"""A verified snapshot → the messages of one attempt: a `create` for every record, then the outcome that closes it.

Values are encoded JSON for `firehose_backfill`; the key of all of them is the DID. A record that does not fit into a
message, or whose path is none of a record, goes without its body and says so: it still counts, so that rows and `count`
agree, and the rows rebuild the tree.
"""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from schemas import wire
from steps.paths import BAD_PATH
from steps.record_json import RecordBody, record_body
from steps.snapshot import Head, Snapshot

TOO_LARGE = "too_large"
_BAD_PATH = RecordBody(None, None, BAD_PATH)  # type: ignore[arg-type]  # a reason that only a path has


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the messages of an attempt say about it. `time`: when it was fetched; the ratchet was read at the claim."""

    did: str
    number: int
    time: str
    account_time: str = ""
    account_seq: int = 0
    host: str | None = None
    handle: str | None = None
    signing_key: str | None = None


def creates(snapshot: Snapshot, attempt: Attempt, limit_bytes: int) -> Iterator[bytes]:
    """One message per record, in key order; none is longer than `limit_bytes`."""
    head, did, number, time = snapshot.head, attempt.did, attempt.number, attempt.time
    rev, commit = head.rev, head.commit
    encode, raw_json, event = wire.encode, msgspec.Raw, wire.CreateEvent
    for collection, rkey, cid, block in snapshot.records():
        body = _BAD_PATH if block is None else record_body(block)
        message = event(
            did=did,
            attempt=number,
            rev=rev,
            collection=collection,
            rkey=rkey,
            cid=cid,
            time=time,
            commit=commit,
            record=wire.ABSENT if body.json is None else raw_json(body.json),
            raw=None if body.raw is None else text_of(body.raw),
            reason=body.reason,
        )
        value = encode(message)
        if len(value) > limit_bytes:
            message.record, message.raw, message.reason = wire.ABSENT, None, TOO_LARGE
            value = encode(message)
        yield value


def synced(head: Head, attempt: Attempt, count: int) -> bytes:
    """The outcome of a snapshot of `count` records."""
    return _outcome(
        attempt,
        "synced",
        active=True,
        rev=head.rev,
        commit=head.commit,
        commit_block=text_of(head.commit_block),
        data=head.data,
        count=count,
    )


def gone(attempt: Attempt, status: str, *, deleted: bool) -> bytes:
    """The outcome of an account that cannot be fetched: `status` is why (takendown, deactivated, not_found, …)."""
    return _outcome(attempt, "deleted" if deleted else "unavailable", active=False, reason=status)


def text_of(block: bytes) -> str:
    """A block in a message: unpadded base64."""
    return b64encode(block).rstrip(b"=").decode()


def _outcome(attempt: Attempt, status: Literal["synced", "unavailable", "deleted"], **fields: Any) -> bytes:
    return wire.encode(
        wire.RepoOutcome(
            did=attempt.did,
            attempt=attempt.number,
            status=status,
            time=attempt.time,
            account_time=attempt.account_time,
            account_seq=attempt.account_seq,
            host=attempt.host,
            handle=attempt.handle,
            signing_key=attempt.signing_key,
            **fields,
        )
    )
