"""Jetstream v2: `network.bsky.jetstream.subscribeEvents` and `getZstdDictionary`. docs/serving.md has the differences."""

from functools import partial

from aiohttp import web

from serve.guard import HEADERS, XrpcError
from serve.stream import parameters
from serve.stream.client import Client, Dialect, StreamStart, Wanted, serve_client
from serve.stream.dictionary import Dictionary
from serve.stream.events import BINARY, METHOD, StreamEvent, error_text, framed, info_text, v2_text
from serve.stream.hub import HUB, Hub
from steps.sequence import SEQ_END

PROTOCOL = "xrpc.v1.json"
KINDS = ("commit", "identity", "account", "sync")
RENAMED = {
    "wantedCollections": "collections",
    "wantedDids": "dids",
    "compress": "zstdDictionary",
    "requireHello": "the parameters of the URL",
}


def add_routes(app: web.Application) -> None:
    """Add both methods."""
    app.router.add_get(f"/xrpc/{METHOD}", subscribe)
    app.router.add_get("/xrpc/network.bsky.jetstream.getZstdDictionary", get_dictionary)


async def get_dictionary(request: web.Request) -> web.Response:
    """The raw dictionary; `id` may only name the current one."""
    dictionary = request.app[HUB].dictionary
    wanted = parameters.number(request.query, "id", 1)
    if wanted not in (None, dictionary.id):
        raise XrpcError("DictionaryNotFound", f"there is no dictionary {wanted}; the current one is {dictionary.id}")
    return web.Response(body=dictionary.raw, content_type="application/octet-stream", headers=HEADERS)


async def subscribe(request: web.Request) -> web.StreamResponse:
    """Stream until one side ends it."""
    query, hub = request.query, request.app[HUB]
    parameters.known(query, (), RENAMED)
    kinds, collections = query.getall("kinds", []), query.getall("collections", [])
    if set(kinds) - set(KINDS):
        raise parameters.invalid(f"kinds: one of {', '.join(KINDS)}")
    if collections and kinds and "commit" not in kinds:
        raise parameters.invalid(
            "collections filters commits, which kinds excludes; add commit to kinds, or leave one out"
        )
    wanted = Wanted(
        frozenset(kinds) or None,
        parameters.dids("dids", query.getall("dids", [])),
        parameters.collections("collections", collections),
        parameters.number(query, "maxMessageSizeBytes") or 0,
    )
    dialect = dialect_of(hub.dictionary, parameters.number(query, "zstdDictionary", 1))
    first: list[bytes] = []
    cursor = parameters.number(query, "cursor")
    start = partial(start_at, hub, cursor, first)
    return await serve_client(request, wanted, dialect, start, first=first, protocols=(PROTOCOL,))


async def start_at(hub: Hub, cursor: int | None, first: list[bytes]) -> StreamStart:
    """Where a cursor begins, and the #info about it in `first`. Raises XrpcError if a `seq` is too old."""
    ring = hub.ring
    newest = await hub.newest()
    if cursor is None:
        return StreamStart(ring.end)
    if newest.seq < cursor < SEQ_END:
        first.append(info_text("FutureCursor", f"the next event is {newest.seq}; the stream begins there"))
        return StreamStart(ring.end)
    is_seq = cursor < SEQ_END
    position = ring.position_of(cursor) if is_seq else ring.position_at(cursor)
    if position is not None:
        return StreamStart(position)
    found = await hub.run(lambda: hub.find(lambda mark: (mark.seq if is_seq else mark.time) <= cursor))
    if found is None:
        return StreamStart(ring.end)
    if found.clamped and is_seq:
        raise XrpcError("CursorTooOld", f"the log begins at {found.start.mark.seq}, after this cursor")
    if found.clamped:
        first.append(info_text("OutdatedCursor", f"older events are gone; the stream begins at {found.start.mark.seq}"))
    return StreamStart(replay=found.start, skip=lambda event: (event.seq if is_seq else event.time) < cursor)


def frame(event: StreamEvent) -> bytes:
    """The event's text in a websocket frame."""
    if not event.v2:
        event.v2 = framed(v2_text(event))
    return event.v2


def compressed_frame(dictionary: Dictionary, event: StreamEvent) -> bytes:
    """The event's text as one zstd frame in a binary websocket frame."""
    if not event.compressed:
        event.compressed = framed(dictionary.compress(v2_text(event)), BINARY)
    return event.compressed


def refuse(_client: Client, _text: str) -> bool:
    """A client may not send anything."""
    return False


PLAIN = Dialect(v2_text, frame, error_text, refuse)


def dialect_of(dictionary: Dictionary, wanted: int | None) -> Dialect:
    """Text frames, or compressed ones. Raises XrpcError for another dictionary than the current one."""
    if wanted is None:
        return PLAIN
    if wanted != dictionary.id:
        raise XrpcError("UnknownZstdDictionary", f"there is no dictionary {wanted}; the current one is {dictionary.id}")
    return PLAIN._replace(frame=partial(compressed_frame, dictionary))
