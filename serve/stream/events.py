"""Messages of `firehose_live` → events of clients, and their JSON on both wires of Jetstream.

A commit has an event for each operation. An event's frames are built when the first client wants them, and are shared by all
clients. The record's JSON is the log's own text. Source: lexicon network.bsky.jetstream.subscribeEvents, and v1's README.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from protocol.car_format import write_header, write_section
from protocol.cid import cid_bytes
from protocol.encoding.unpadded_base64 import from_base64, to_base64
from schemas import wire
from serve.stream.log_reader import Numbered
from steps.sequence import SEQS

METHOD = "network.bsky.jetstream.subscribeEvents"
OVERHEAD_BYTES = 1000
"""Memory of an event beside its texts."""
TEXTS = 4
"""Texts of an event at most, beside each other in memory: the log's, one for each wire, and a compressed one."""
TEXT, BINARY = 0x81, 0x82
"""First bytes of a websocket frame."""
_encode = msgspec.json.Encoder().encode


class StreamEvent(msgspec.Struct, gc=False):
    """What filters need, and the frames that some client has wanted already. `size`: of its share of memory."""

    seq: int
    time: int
    kind: str
    did: str
    collection: str
    source: wire.LiveEvent
    op: Any  # wire.Op of a commit
    size: int
    v1: bytes = b""
    v2: bytes = b""
    compressed: bytes = b""


def events(messages: Iterable[Numbered]) -> Iterator[StreamEvent]:
    """The events of messages in order. Operations without a valid path are left out: no client could name their records."""
    for seq, time, value in messages:
        source = wire.decode_live(value)
        if not isinstance(source, wire.CommitEvent):
            kind = type(source).__name__.removesuffix("Event").lower()
            yield StreamEvent(seq, time, kind, source.did, "", source, None, TEXTS * len(value) + OVERHEAD_BYTES)
            continue
        size = TEXTS * len(value) // max(1, len(source.ops)) + OVERHEAD_BYTES
        for at, op in enumerate(source.ops):
            if op.reason != "bad_path":
                number = seq + min(at, SEQS - 1)
                yield StreamEvent(number, time, "commit", source.did, op.collection, source, op, size)


def v1_text(event: StreamEvent) -> bytes:
    """The JSON of v1. Not for #sync, which v1 does not have."""
    source = event.source
    head = b'{"did":%b,"time_us":%d,"kind":"%b",' % (_encode(event.did), event.time, event.kind.encode())
    if event.kind == "commit":
        return head + b'"commit":{"rev":%b,%b}}' % (_encode(source.rev), _operation(event.op))  # type: ignore[union-attr]
    return head + b'"%b":%b}' % (event.kind.encode(), _upstream(source))


def v2_text(event: StreamEvent) -> bytes:
    """The message frame of v2."""
    time = datetime.fromtimestamp(event.time // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    head = b'{"$type":"message","payload":{"$type":"%b#%b","seq":%d,"did":%b,"time":"%b.%06dZ",' % (
        METHOD.encode(),
        event.kind.encode(),
        event.seq,
        _encode(event.did),
        time.encode(),
        event.time % 1_000_000,
    )
    if event.kind == "commit":
        return head + b'"rev":%b,%b}}' % (_encode(event.source.rev), _operation(event.op))  # type: ignore[union-attr]
    return head + b'"%b":%b}}' % (event.kind.encode(), _upstream(event.source))


def info_text(name: str, message: str) -> bytes:
    """v2's #info."""
    payload = {"$type": f"{METHOD}#info", "name": name, "message": message}
    return _encode({"$type": "message", "payload": payload})


def error_text(name: str, message: str) -> bytes:
    """v2's error frame, after which the connection closes."""
    return _encode({"$type": "error", "error": name, "message": message})


def framed(payload: bytes, first: int = TEXT) -> bytes:
    """A whole websocket frame of a server (RFC 6455 §5.2): not masked, so that clients can share it."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def _operation(op: wire.Op) -> bytes:
    fields = {"operation": op.action, "collection": op.collection, "rkey": op.rkey}
    text = _encode(fields)[1:-1]
    if op.action != "delete":
        record = wire.body(op.record)
        text += (b',"record":' + record if record is not None else b"") + b',"cid":' + _encode(op.cid)
    return text


def _upstream(source: wire.LiveEvent) -> bytes:
    """The relay's event as it was, but for what the log leaves out (docs/serving.md)."""
    found: dict[str, Any] = {"seq": source.seq, "did": source.did, "time": source.time}
    if isinstance(source, wire.SyncEvent):
        found |= {"rev": source.rev, "blocks": {"$bytes": _sync_car(source)}}
    elif isinstance(source, wire.AccountEvent):
        found |= {"active": source.active} | ({"status": source.status} if source.status else {})
    elif isinstance(source, wire.IdentityEvent) and source.handle:
        found["handle"] = source.handle
    return _encode(found)


def _sync_car(source: wire.SyncEvent) -> str:
    """The CAR of a #sync in base64: its header and the commit's block."""
    if source.commit is None or source.commit_block is None:
        return ""
    cid = cid_bytes(source.commit)
    return to_base64(write_header(cid) + write_section(cid, from_base64(source.commit_block)))
