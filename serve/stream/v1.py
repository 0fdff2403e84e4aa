"""Jetstream v1: `/subscribe`. The parameters and messages of its README; docs/serving.md has the differences."""

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from serve.guard import XrpcError
from serve.stream import parameters
from serve.stream.client import Client, Dialect, StreamStart, Wanted, serve_client
from serve.stream.events import StreamEvent, framed, v1_text
from serve.stream.hub import HUB
from steps.sequence import SEQ_END

KINDS = frozenset(("commit", "identity", "account"))


def add_routes(app: web.Application) -> None:
    """Add `/subscribe`."""
    app.router.add_get("/subscribe", subscribe)


async def subscribe(request: web.Request) -> web.StreamResponse:
    """Stream until one side ends it."""
    query = request.query
    if parameters.truth(query, "compress") or request.headers.get("Socket-Encoding", "") == "zstd":
        raise parameters.invalid(
            "compress: v1's dictionary is not available here; leave it out, or use v2 with zstdDictionary"
        )
    wanted = wanted_of(
        query.getall("wantedCollections", []),
        query.getall("wantedDids", []),
        parameters.number(query, "maxMessageSizeBytes", -(2**63)) or 0,
    )
    cursor = parameters.number(query, "cursor", -(2**63))
    hello = parameters.truth(query, "requireHello")
    return await serve_client(request, wanted, DIALECT, lambda: start_at(request, cursor), hello=hello)


def wanted_of(collections: Sequence[object], dids: Sequence[object], most_bytes: int) -> Wanted:
    """The filters of a client. Identity and account events are filtered by DIDs only. Raises XrpcError."""
    return Wanted(
        KINDS,
        parameters.dids("wantedDids", dids),
        parameters.collections("wantedCollections", collections),
        max(0, most_bytes),
    )


async def start_at(request: web.Request, cursor: int | None) -> StreamStart:
    """Where a cursor begins: a time in microseconds, or below 10^15 a `seq`. Without one, or in the future: the newest event."""
    hub = request.app[HUB]
    ring = hub.ring
    await hub.newest()
    if cursor is None or cursor < 0:
        return StreamStart(ring.end)
    is_seq = cursor < SEQ_END
    position = ring.position_of(cursor) if is_seq else ring.position_at(cursor)
    if position is not None:
        return StreamStart(position)
    found = await hub.run(lambda: hub.find(lambda mark: (mark.seq if is_seq else mark.time) <= cursor))
    if found is None:
        return StreamStart(ring.end)
    return StreamStart(replay=found.start, skip=lambda event: (event.seq if is_seq else event.time) < cursor)


def receive(client: Client, text: str) -> bool:
    """`options_update` replaces the filters; anything else is ignored. An invalid one closes the connection."""
    try:
        message: Any = msgspec.json.decode(text)
        if not isinstance(message, dict) or message.get("type") != "options_update":
            return True
        options = message.get("payload") or {}
        collections, dids = (options.get(name) or [] for name in ("wantedCollections", "wantedDids"))
        client.wanted = wanted_of(collections, dids, int(options.get("maxMessageSizeBytes") or 0))
    except (msgspec.DecodeError, XrpcError, TypeError, ValueError, AttributeError):
        return False
    client.ready.set()
    return True


def frame(event: StreamEvent) -> bytes:
    """The event's text in a websocket frame."""
    if not event.v1:
        event.v1 = framed(v1_text(event))
    return event.v1


DIALECT = Dialect(v1_text, frame, lambda name, message: None, receive)
