"""com.atproto.label.subscribeLabels: the stream of one labeler, with its own `seq`.

A cursor of the labeler is valid here, and one of ours there, at any replica. Where SLUICE_LABELERS names several, the parameter
`labeler` chooses one. Each client has a thread and a client of the log; at most CLIENTS in a process.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aiohttp import WSCloseCode, web

from connectors.http.server import BoundedConnection
from schemas.settings import Settings
from serve.context import CONTEXT
from serve.guard import UNAVAILABLE, XrpcError
from serve.xrpc.label_reader import FutureCursor, LabelReader, error_frame
from serve.xrpc.parameters import Query

CLIENTS = 16
SLOW_SECONDS = 20.0
"""Time in which a client takes a frame."""
HEARTBEAT_SECONDS = 30.0
MESSAGE_BYTES = 1024

T = TypeVar("T")


class LabelClients:
    """Threads of the clients, and their number."""

    def __init__(self) -> None:
        self.count = 0
        self._threads = ThreadPoolExecutor(CLIENTS, thread_name_prefix="labels")

    async def run(self, work: Callable[[], T]) -> T:
        """Call a blocking function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def close(self, _: web.Application) -> None:
        """End the threads without waiting for running calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)


LABEL_CLIENTS = web.AppKey("label_clients", LabelClients)


def add_label_stream(app: web.Application) -> None:
    """Add the route."""
    app[LABEL_CLIENTS] = clients = LabelClients()
    app.on_cleanup.append(clients.close)
    app.router.add_get("/xrpc/com.atproto.label.subscribeLabels", subscribe_labels, allow_head=False)


async def subscribe_labels(request: web.Request) -> web.StreamResponse:
    """Stream until one side ends it."""
    context, clients = request.app[CONTEXT], request.app[LABEL_CLIENTS]
    labeler, cursor = labeler_of(context.settings, request.query), cursor_of(request.query)
    if clients.count >= CLIENTS:
        raise XrpcError("NotEnoughResources", f"{CLIENTS} clients are subscribed; retry later", 503)
    clients.count += 1
    try:
        reader = LabelReader(context, labeler, cursor)
        try:
            return await _serve(request, clients, reader)
        finally:
            await asyncio.shield(clients.run(reader.close))
    finally:
        clients.count -= 1


async def _serve(request: web.Request, clients: LabelClients, reader: LabelReader) -> web.WebSocketResponse:
    try:
        first = await clients.run(reader.open)
    except FutureCursor:
        first = None
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_SECONDS, compress=False, max_msg_size=MESSAGE_BYTES)
    await socket.prepare(request)
    if first is None:
        await socket.send_bytes(error_frame("FutureCursor", "the cursor is above the newest label"))
        await socket.close(code=WSCloseCode.POLICY_VIOLATION)
        return socket
    closed = asyncio.create_task(_until_closed(socket))
    try:
        frames = first
        while not closed.done():
            async with asyncio.timeout(SLOW_SECONDS):
                for frame in frames:
                    await socket.send_bytes(frame)
            _extend(request)
            frames = await clients.run(reader.poll)
    except UNAVAILABLE:
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER)
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
    finally:
        closed.cancel()
    return socket


async def _until_closed(socket: web.WebSocketResponse) -> None:
    """Read until the client closes; what it sends is ignored."""
    async for _ in socket:
        pass


def _extend(request: web.Request) -> None:
    connection = request.transport and request.transport.get_protocol()
    if isinstance(connection, BoundedConnection):
        connection.extend()


def labeler_of(settings: Settings, query: Query) -> str:
    """The URL of the labeler that the client wants. Raises XrpcError."""
    names = ", ".join(settings.labelers) or "none"
    wanted = query.get("labeler", settings.labelers[0] if len(settings.labelers) == 1 else "")
    if wanted not in settings.labelers:
        raise XrpcError("InvalidRequest", f"labeler must be one of those that are mirrored: {names}")
    return wanted


def cursor_of(query: Query) -> int | None:
    """The parameter `cursor`. Raises XrpcError."""
    text = query.get("cursor")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise XrpcError("InvalidRequest", "cursor must be a whole number")
    return int(text)
