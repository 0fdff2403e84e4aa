"""One client of a stream: `serve_client(...)` upgrades the connection and sends until one side ends it.

Frames are written to the transport as they are shared by all clients; aiohttp sends what is the client's own (pong, close). A client
that takes nothing for SLOW_SECONDS, or falls behind the ring, is closed; no other one waits for it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NamedTuple

from aiohttp import WSCloseCode, WSMsgType, web

from connectors.http.server import BoundedConnection
from connectors.kafka.log import LogUnavailable
from connectors.runtime import metrics
from serve.stream.events import StreamEvent, events, framed
from serve.stream.hub import HUB, Hub
from serve.stream.log_reader import LogReader, OutOfRange
from serve.stream.marks import StoredMark
from steps.gate.filters import Filter

WRITE_EVENTS = 200
"""Events of one write."""
UNSENT_BYTES = 256 * 1024
"""Bytes that a client has not taken, above which nothing more is written."""
SLOW_SECONDS = 20.0
UNSENT_CHECK_SECONDS = 0.01
HEARTBEAT_SECONDS = 30.0
CHANGED_SECONDS = 10.0
READ_SECONDS = 0.5
CLOSE_SECONDS = 2.0
MESSAGE_BYTES = 1024 * 1024
"""A message of the client: v1's options with 10,000 DIDs have some 400 KB."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client wants. None: all of them. `most_bytes`: of a text; 0 for any."""

    kinds: frozenset[str] | None = None
    dids: frozenset[str] | None = None
    collections: Filter | None = None
    most_bytes: int = 0

    def has(self, event: StreamEvent) -> bool:
        """Whether an event is wanted, whatever its size."""
        if self.dids is not None and event.did not in self.dids:
            return False
        if self.kinds is not None and event.kind not in self.kinds:
            return False
        return self.collections is None or event.kind != "commit" or self.collections.keeps(event.collection)


class StreamStart(NamedTuple):
    """Where a stream begins: at a position of the ring, or by a replay from a mark, without the events for which `skip` holds."""

    position: int = 0
    replay: StoredMark | None = None
    skip: Callable[[StreamEvent], bool] = lambda _: False


class ClientTooSlow(Exception):
    """The client took nothing for too long, or fell behind the ring."""


class Dialect(NamedTuple):
    """How a wire says things. `text`: an event's text frame, `frame`: what is sent for it; both are shared by clients."""

    text: Callable[[StreamEvent], bytes]
    frame: Callable[[StreamEvent], bytes]
    error: Callable[[str, str], bytes | None]
    receive: "Callable[[Client, str], bool]"
    """A text message of the client; False closes the connection."""


class Client:
    """A connected client."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, wanted: Wanted, dialect: Dialect) -> None:
        self.wanted = wanted
        self.ready = asyncio.Event()
        self._hub: Hub = request.app[HUB]
        self._socket = socket
        self._dialect = dialect
        assert request.transport is not None  # noqa: S101 - for the type checker: it has just been upgraded
        self._transport = request.transport
        found = request.transport.get_protocol()
        self._connection = found if isinstance(found, BoundedConnection) else None

    async def run(self, start: StreamStart, replayed: Callable[[], Awaitable[None]]) -> None:
        """Send and receive until one side ends it. `replayed`: awaited when a replay has met the live stream."""
        tasks = [asyncio.create_task(one) for one in (self._send_all(start, replayed), self._receive_all())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            # not GOING_AWAY: the SDK for Python takes it for the stream's end, and does not reconnect
            await self._close(WSCloseCode.SERVICE_RESTART if self._hub.closing else WSCloseCode.OK, "")
        except ClientTooSlow:
            metrics.SERVE_SLOW.inc()
            await self._close(
                WSCloseCode.POLICY_VIOLATION, "ConsumerTooSlow", "the client is too slow; reconnect with its cursor"
            )
        except OutOfRange:
            await self._close(WSCloseCode.POLICY_VIOLATION, "CursorTooOld", "the log no longer has the next event")
        except LogUnavailable:
            await self._close(
                WSCloseCode.TRY_AGAIN_LATER, "UpstreamFailure", "the log does not answer; reconnect later"
            )
        except ConnectionError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def write(self, text: bytes) -> None:
        """Write a text frame of the client's own."""
        self._transport.write(framed(text))

    async def _close(self, code: int, name: str, message: str = "") -> None:
        if name and (frame := self._dialect.error(name, message)) is not None:
            self.write(frame)
        await self._socket.close(code=code, message=name.encode())
        if self._transport.get_write_buffer_size():
            self._transport.abort()  # it would be kept for as long as a client takes nothing

    async def _receive_all(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT or not self._dialect.receive(self, message.data):
                return

    async def _send_all(self, start: StreamStart, replayed: Callable[[], Awaitable[None]]) -> None:
        await self.ready.wait()
        position = start.position if start.replay is None else await self._replay(start.replay, start.skip)
        await replayed()
        ring = self._hub.ring
        while not self._hub.closing:
            found = ring.from_position(position, WRITE_EVENTS)
            if found is None:
                raise ClientTooSlow
            if found:
                position += len(found)
                await self._send(found)
                await asyncio.sleep(0)  # others' turn
            else:
                await ring.changed(CHANGED_SECONDS)
                self._extend()

    async def _replay(self, start: StoredMark, skip: Callable[[StreamEvent], bool]) -> int:
        """Send from the log until the ring has what follows; the position there."""
        hub = self._hub
        reader = await hub.run(lambda: LogReader(hub.settings, start, "replay"))
        try:
            while (position := hub.ring.meeting(reader.newest.mark.seq)) is None:
                found = await hub.run(lambda: list(events(reader.read(READ_SECONDS))))
                for at in range(0, len(found), WRITE_EVENTS):
                    await self._send([event for event in found[at : at + WRITE_EVENTS] if not skip(event)])
                self._extend()
                if hub.closing:
                    break
            return position or 0
        finally:
            await asyncio.shield(hub.run(reader.close))

    async def _send(self, found: Sequence[StreamEvent]) -> None:
        wanted, frame = self.wanted, self._dialect.frame
        chosen = [event for event in found if wanted.has(event)]
        if wanted.most_bytes:
            chosen = [event for event in chosen if len(self._dialect.text(event)) <= wanted.most_bytes]
        if chosen:
            metrics.SERVE_EVENTS.inc(len(chosen))
            self._transport.write(b"".join(map(frame, chosen)))
        await self._taken()

    async def _taken(self) -> None:
        """Wait until the client has taken enough. Raises ClientTooSlow and ConnectionError."""
        least, until = float("inf"), 0.0
        while (unsent := self._transport.get_write_buffer_size()) > UNSENT_BYTES:
            now = time.monotonic()
            if unsent < least:
                least, until = unsent, now + SLOW_SECONDS
            if now > until:
                raise ClientTooSlow
            await asyncio.sleep(UNSENT_CHECK_SECONDS)
        if self._transport.is_closing():
            raise ConnectionResetError
        self._extend()

    def _extend(self) -> None:
        if self._connection is not None:
            self._connection.extend()


async def serve_client(
    request: web.Request,
    wanted: Wanted,
    dialect: Dialect,
    start: Callable[[], Awaitable[StreamStart]],
    *,
    hello: bool = False,
    first: Sequence[bytes] = (),
    protocols: Sequence[str] = (),
) -> web.WebSocketResponse:
    """Answer a client with a stream. `start` is found before the upgrade; `first`: texts to begin with. Raises XrpcError."""
    async with AsyncExitStack() as stack:
        begin = await start()
        if begin.replay is not None:
            await stack.enter_async_context(request.app[HUB].place())
        socket = web.WebSocketResponse(
            protocols=protocols,
            compress=False,
            heartbeat=HEARTBEAT_SECONDS,
            max_msg_size=MESSAGE_BYTES,
            timeout=CLOSE_SECONDS,
        )
        await socket.prepare(request)
        client = Client(request, socket, wanted, dialect)
        for text in first:
            client.write(text)
        if not hello:
            client.ready.set()
        with metrics.SERVE_CLIENTS.track_inprogress():
            await client.run(begin, stack.aclose)
    return socket
