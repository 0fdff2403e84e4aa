"""Events and their encoding as frames.

A frame is two DAG-CBOR objects, header `{op, t}` and body, in one binary websocket message. `wire` adds the websocket
framing (RFC 6455, server to client, unmasked), so that a stream can write many frames with one system call.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

from cbrrr import CID, encode_dag_cbor

from simulator.repo.car import write_car
from simulator.repo.records import timestamp
from simulator.repo.repository import AppliedCommit


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `body` has no seq: each stream assigns its own."""

    kind: str
    did: str
    body: dict[str, Any]

    def frame(self, seq: int) -> bytes:
        return header(self.kind) + encode_dag_cbor({**self.body, "seq": seq})


_HEADERS: dict[str, bytes] = {}


def header(kind: str) -> bytes:
    """The encoded header of a message frame of this type, cached."""
    found = _HEADERS.get(kind)
    if found is None:
        found = _HEADERS[kind] = encode_dag_cbor({"op": 1, "t": kind})
    return found


def error_frame(error: str, message: str) -> bytes:
    return encode_dag_cbor({"op": -1}) + encode_dag_cbor({"error": error, "message": message})


def info_frame(name: str, message: str) -> bytes:
    """An #info frame; it has no seq."""
    return header("#info") + encode_dag_cbor({"name": name, "message": message})


def wire(frame: bytes) -> bytes:
    """The frame as one websocket message."""
    size = len(frame)
    if size < 126:
        return bytes((0x82, size)) + frame
    if size < 65536:
        return b"\x82\x7e" + size.to_bytes(2, "big") + frame
    return b"\x82\x7f" + size.to_bytes(8, "big") + frame


def now_text(ahead_seconds: float = 0.0) -> str:
    """The real time plus `ahead_seconds`, as the `time` of an event. Benchmarks measure latencies from it."""
    return timestamp(time.time_ns() // 1000 + int(ahead_seconds * 1_000_000))


def ahead(event: Event, seconds: float) -> Event:
    """The same event with the time of a clock that is `seconds` ahead."""
    return replace(event, body={**event.body, "time": now_text(seconds)})


def commit_event(did: str, commit: AppliedCommit) -> Event:
    body: dict[str, Any] = {
        "repo": did,
        "commit": CID(commit.head.commit),
        "rev": commit.head.rev,
        "since": commit.since,
        "blocks": write_car(commit.head.commit, commit.blocks),
        "ops": [_op(op.action, op.path, op.cid, op.prev) for op in commit.ops],
        "blobs": [],
        "rebase": False,
        "tooBig": False,
        "time": now_text(),
    }
    if commit.prev_data is not None:
        body["prevData"] = CID(commit.prev_data)
    return Event("#commit", did, body)


def _op(action: str, path: str, cid: bytes | None, prev: bytes | None) -> dict[str, Any]:
    op: dict[str, Any] = {"action": action, "path": path, "cid": CID(cid) if cid else None}
    if prev is not None:
        op["prev"] = CID(prev)
    return op


def sync_event(did: str, rev: str, commit: bytes, commit_block: bytes) -> Event:
    """A #sync event: the head of a repository, without operations."""
    blocks = write_car(commit, [(commit, commit_block)])
    return Event("#sync", did, {"did": did, "rev": rev, "blocks": blocks, "time": now_text()})


def identity_event(did: str, handle: str | None) -> Event:
    """An #identity event; handle None leaves the handle out."""
    body = {"did": did, "time": now_text()}
    return Event("#identity", did, {**body, "handle": handle} if handle else body)


def account_event(did: str, active: bool, status: str | None) -> Event:
    body: dict[str, Any] = {"did": did, "active": active, "time": now_text()}
    return Event("#account", did, {**body, "status": status} if status else body)
