"""Every parser of bytes from outside as one function: input → what a process makes of it, rejections and their texts included.

Each calls what the processes call. None may raise, nor return a text that is longer than a log line or that a log cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libipld

from connectors.atproto.deferred_events import new_deferred
from connectors.atproto.relay import Pager
from connectors.atproto.stream_sockets import Frame
from connectors.http.client import (
    LIST_JSON,
    SMALL_JSON,
    HostRefused,
    HttpAnswer,
    check_url,
    redirected,
    retry_after,
    xrpc_error,
)
from connectors.identity.directory_probe import has_directory_message, read_document
from connectors.identity.label_signatures import CheckedFrame
from connectors.kafka.producer import Out
from flows.firehose import flow as firehose
from flows.labels import flow as labels
from flows.streams import cursor_step
from protocol.car import CarLimits, index_bytes, salvaged
from protocol.car_format import CarError
from protocol.commit import CommitRejected, parse_commit
from protocol.did_document import IdentityRejected
from protocol.encoding.bounded_json import BadJson, decode
from protocol.encoding.cbor_scan import ScanError, nested_deeper, scan_all
from protocol.encoding.record_json import body_cid, record_body
from protocol.event_stream import MAX_ITEMS, Labels, position, sequence
from protocol.handle import from_txt, from_well_known, joined, judge
from protocol.labels import label_signed
from protocol.mst.invert import Change, Unproven, invert
from protocol.mst.node import MstError, parse_node
from protocol.snapshot import Limits, SnapshotRejected, from_car_error, opening
from protocol.verify_commit import Verified, signed
from schemas import wire
from schemas.reasons import DeadReason
from schemas.settings import Settings
from steps.cursor import Cursors
from steps.dedup import DedupCache
from steps.listing.list_page import PageFailure, failure_of, read_page

DATA = b"\x01\x71\x12\x20" + bytes(32)
DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
KEY = "did:key:zQ3shjTRLwwtBVSa4LdW5bBoeWCSdVTBU5DSTaoWQ6vL5yZ8E"
NOW = 1 << 53
SETTINGS = Settings()
MOST_TEXT = 2500


def frame(data: bytes) -> None:
    """A websocket message, through the steps of both flows, and what the socket's loop asks of it."""
    position(data)
    sequence(data)
    cursors = Cursors()
    batch = firehose.follower(cursors)(firehose.decode_all([Frame("wss://relay", data)]))
    batch = firehose.deduplicator(DedupCache(1000), new_deferred())(firehose.verifier(SETTINGS)(batch))
    for received in batch:
        if isinstance(received.message, Verified):
            signed(received.message, KEY)
    _written(firehose.encode_all(batch))
    kept = cursor_step("labels", Cursors(), (Labels,))(labels.decode_all([Frame("wss://labeler", data)]))
    for one in kept:
        for value in one.message.labels if isinstance(one.message, Labels) else ():
            if type(value) is dict:
                label_signed(value, KEY)
    _written(labels.encode_all([CheckedFrame(one, {}) for one in kept]))


def archive(data: bytes) -> None:
    """A CAR: of a commit, damaged, and of a snapshot."""
    salvaged(data, CarLimits())
    try:
        car = index_bytes(data)
        for _ in opening(car, DID, None, limits=Limits(record_bytes=1 << 20, records=10_000)):
            pass
    except CarError as err:
        _shown(str(from_car_error(err)))
    except SnapshotRejected as err:
        _shown(str(err))


def node(data: bytes) -> None:
    """A node of a tree, to the strict reader and to the firehose's."""
    strict = True
    try:
        parse_node(b"", data)
    except MstError as err:
        strict = False
        _shown(str(err))
    try:
        invert(DATA, {DATA: data}.get, [Change(b"a.b.c/x", None, DATA)])
    except Unproven as err:
        _shown(str(err))
        return
    assert strict, "the firehose's reader takes a node that the strict one refuses"


def commit(data: bytes) -> None:
    """A commit's block."""
    found = parse_commit(data)
    if isinstance(found, CommitRejected):
        _shown(f"{found.reason}: {found.detail}")


def record(data: bytes) -> None:
    """A record's block, and the way back."""
    body = record_body(data)
    assert body.json is not None or body.raw is not None or body.reason is not None
    if body.json is not None and body.raw is None and body.reason is None:
        body_cid(body.json)


def items(data: bytes) -> None:
    """The scan refuses nothing that the decoder takes, and counts no more items than there are bytes."""
    refused: ScanError | None = None
    count = 0
    try:
        count = scan_all(data, MAX_ITEMS, 2)
    except ScanError as err:
        refused = err
        _shown(str(err))
    assert count <= len(data)
    if refused is None or refused.too_large or len(data) > MAX_ITEMS:
        return
    try:
        parts = libipld.decode_dag_cbor_multi(data)
    except (ValueError, RecursionError):
        return
    assert len(parts) > 2 or nested_deeper(parts), refused


def listing(data: bytes) -> None:
    """Answers of listRepos and listHosts, and errors of XRPC."""
    name, message = xrpc_error(data)
    _shown(failure_of(500, name, None).detail)
    _shown(message)
    try:
        body = decode(data, LIST_JSON)
    except BadJson as err:
        _shown(str(err))
        return
    page = read_page(body, NOW)
    if isinstance(page, PageFailure):
        _shown(page.detail)
    pager = Pager(SETTINGS, None)  # type: ignore[arg-type]  # no request is made
    rows = body.get("hosts") if isinstance(body, dict) else None
    for row in rows if isinstance(rows, list) else ():
        assert len(pager._host_url(row) or "") < 300, "it is the key of a row"


def document(data: bytes) -> None:
    """DID documents, the directory's refusals, and small answers such as getRepoStatus."""
    answer = HttpAnswer(200, {}, data)
    has_directory_message(answer)
    found = read_document(DID, answer)
    if isinstance(found, IdentityRejected):
        _shown(f"{found.reason}: {found.detail}")
    try:
        answer.json(SMALL_JSON)
    except BadJson as err:
        _shown(str(err))


def text(data: bytes) -> None:
    """Texts of DNS, of a domain's web host, of HTTP headers and redirects."""
    words = data.decode("utf-8", "replace")
    said = joined(from_txt(words.split("\n")), from_well_known(200, data))
    _shown(judge(DID, "bob.test", said).detail, most=5000)  # names a DID, of 2,048 characters at most
    retry_after({"Retry-After": words}, 0.0)
    for base in ("https://pds.example/x", words):
        try:
            check_url(redirected(base, words), allow_private=False)
        except HostRefused as err:
            _shown(str(err), most=5000)


TARGETS: tuple[Callable[[bytes], None], ...] = (
    *(frame, archive, node, commit, record),
    *(items, listing, document, text),
)


def one(data: bytes) -> None:
    """The first byte chooses the target, the rest is its input."""
    if data:
        TARGETS[data[0] % len(TARGETS)](data[1:])


def _written(out: list[Out]) -> None:
    for message in out:
        if message.topic == "dead_letter":
            letter: Any = wire.decode_dead_letter(message.value)
            _shown(letter.error)
            assert DeadReason(letter.reason) is not DeadReason.FAILED, letter.error
        elif message.topic == "label_live":
            wire.decode_label(message.value)
        else:
            wire.decode_live(message.value)


def _shown(words: str, most: int = MOST_TEXT) -> None:
    assert len(words) <= most, f"a text of {len(words)} characters"
    words.encode()  # no lone surrogates: neither log nor table would take it
