"""An event stream: a bounded window of sequenced events, and the websocket that serves it.

Cursor: absent = new events only, 0 = from the oldest event kept, n = after seq n. A cursor older than the window gives #info
OutdatedCursor and then the oldest event kept; a cursor past the newest event gives the error FutureCursor. A reader whose
position leaves the window gets the error ConsumerTooSlow.
"""

import asyncio
import os
from bisect import bisect_right
from dataclasses import dataclass

from aiohttp import WSMsgType, web
from cbrrr import encode_dag_cbor

from simulator.events import Event, error_frame, header, info_frame, wire
from simulator.faults import hostile_frames
from simulator.faults.faults import STREAM_FAULTS, Faults

_BUFFER_HIGH = 1 << 20  # bytes buffered in a socket before the stream pauses
_CHUNK_EVENTS = 256


@dataclass(slots=True)
class _LoggedEvent:
    seq: int
    event: Event
    wire: bytes | None = None


class EventStream:
    """The events of one server. A position counts events from the first one ever (0), independent of seq."""

    def __init__(self, first_seq: int, window: int, faults: Faults, host: int, fault_prefix: str = "") -> None:
        self.window = window
        self.last_seq = first_seq - 1
        self.faults = faults
        self.host = host
        self.held = False  # True: readers do not receive new events
        self.announce_outdated = True
        self.refuse_future = True
        self.readers: set[_StreamReader] = set()
        self.fault_prefix = fault_prefix
        self._entries: list[_LoggedEvent] = []
        self._base = 0
        self._visible_end = 0
        self._dropped_seq = 0  # the highest seq deleted from the window; 0 = none
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def end(self) -> int:
        """The position after the newest event that readers may receive."""
        return self._visible_end

    @property
    def first(self) -> int:
        """The position of the oldest event kept."""
        return max(self._base, self._visible_end - self.window)

    def publish(self, event: Event, *, gap: int = 0, repeat: bool = False) -> int:
        """Append an event with the next seq. Returns its seq.

        gap: skip this many sequence numbers. repeat: use the last seq again.
        """
        if not repeat:
            self.last_seq += 1 + gap
        self._entries.append(_LoggedEvent(self.last_seq, event))
        if not self.held:
            self._reveal()
            self._trim()
        return self.last_seq

    def release(self) -> None:
        """Stop holding: readers receive all events."""
        self.held = False
        self._reveal()

    def _trim(self) -> None:
        """Delete events older than the window, in batches."""
        excess = len(self._entries) - self.window
        if excess > self.window // 8 + 64:
            self._dropped_seq = self._entries[excess - 1].seq
            del self._entries[:excess]
            self._base += excess

    def encode_all(self) -> int:
        """Encode every event kept, before readers request it. Returns the number of bytes."""
        return sum(len(self._wire(entry)) for entry in self._entries)

    def _reveal(self) -> None:
        self._visible_end = self._base + len(self._entries)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        """Wait for the next event."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def position_after(self, seq: int) -> int:
        """The position of the first event kept after this seq."""
        first = self.first
        at = bisect_right(self._entries, seq, lo=first - self._base, key=lambda entry: entry.seq)
        return self._base + at

    def oldest_lost_seq(self) -> int:
        """The highest seq outside the window; 0 if no event has left it."""
        offset = self.first - self._base
        return self._entries[offset - 1].seq if offset else self._dropped_seq

    def seq_before(self, position: int) -> int:
        """The seq of the event before this position. An injected frame carries it, as it must not claim a later one."""
        offset = position - self._base
        return self._entries[offset - 1].seq if offset else self._dropped_seq

    def wires(self, position: int, limit: int) -> list[bytes]:
        """Up to `limit` encoded events from a position on."""
        start = position - self._base
        stop = min(start + limit, self._visible_end - self._base)
        return [self._wire(entry) for entry in self._entries[start:stop]]

    @staticmethod
    def _wire(entry: _LoggedEvent) -> bytes:
        if entry.wire is None:
            entry.wire = wire(entry.event.frame(entry.seq))
        return entry.wire

    async def serve(self, request: web.Request) -> web.StreamResponse:
        text = request.query.get("cursor")
        if text is not None and not text.isdigit():
            return web.json_response({"error": "InvalidRequest", "message": "cursor must be an integer"}, status=400)
        if (refused := self.faults.fire("stream_429", host=self.host)) is not None:
            headers = {"Retry-After": str(refused.get("retry_after", 1))}
            return web.json_response({"error": "RateLimitExceeded"}, status=refused.get("status", 429), headers=headers)
        socket = web.WebSocketResponse(compress=False, autoping=True)
        await socket.prepare(request)
        reader = _StreamReader(self, socket, request)
        self.readers.add(reader)
        pump = asyncio.create_task(reader.pump(None if text is None else int(text)))
        try:
            async for message in socket:
                if message.type is WSMsgType.ERROR:
                    break
        finally:
            pump.cancel()
            self.readers.discard(reader)
            await asyncio.gather(pump, return_exceptions=True)
        return socket


class _StreamReader:
    """One connected reader: its position and its socket."""

    def __init__(self, stream: EventStream, socket: web.WebSocketResponse, request: web.Request) -> None:
        self.position = 0
        self._stream = stream
        self._socket = socket
        self._request = request

    async def pump(self, cursor: int | None) -> None:
        """Send all events after the cursor until the socket closes."""
        stream = self._stream
        if cursor is None:
            self.position = stream.end
        elif cursor > stream.last_seq:
            if stream.refuse_future:
                await self._fail("FutureCursor", "Cursor in the future.")
                return
            self.position = stream.end
        else:
            self.position = stream.position_after(cursor)
            if 0 < cursor < stream.oldest_lost_seq() and stream.announce_outdated:
                await self._write(
                    wire(info_frame("OutdatedCursor", "Requested cursor exceeded limit. Possibly missing events"))
                )
        while not self._socket.closed:
            if self.position < stream.first:
                await self._fail("ConsumerTooSlow", "Stream consumer too slow")
                return
            if self.position >= stream.end:
                await stream.changed()
                continue
            faulty = stream.faults.any_on(STREAM_FAULTS)
            if faulty and not await self._inject_faults():
                return
            wires = stream.wires(self.position, 1 if faulty else _CHUNK_EVENTS)
            self.position += len(wires)
            await self._write(b"".join(wires))

    async def _write(self, data: bytes) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        # aiohttp has no public method to wait for a transport that is written to directly
        while transport.get_write_buffer_size() > _BUFFER_HIGH and not transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        await asyncio.sleep(0)

    async def _fail(self, error: str, message: str) -> None:
        await self._write(wire(error_frame(error, message)))
        await self._socket.close()

    async def _inject_faults(self) -> bool:
        """Fire the stream's faults before the next frame. False if the connection has ended."""
        faults, host, prefix = self._stream.faults, self._stream.host, self._stream.fault_prefix
        if faults.fire(prefix + "garbage", host=host):
            await self._write(wire(b"\xff" + os.urandom(40)))
        if faults.fire(prefix + "hostile", host=host):
            frames = hostile_frames.frames("#labels" if prefix else "#commit", self._stream.seq_before(self.position))
            await self._write(wire(frames[faults.counts[prefix + "hostile"] % len(frames)]))
        if faults.fire(prefix + "unknown_type", host=host):
            await self._write(
                wire(header("#novelty") + encode_dag_cbor({"seq": self._stream.seq_before(self.position)}))
            )
        if faults.fire(prefix + "error_frame", host=host):
            await self._fail("InternalServerError", "injected")
            return False
        if faults.fire(prefix + "drop", host=host):
            self._cut()
            return False
        silence = faults.fire(prefix + "silence", host=host)
        if silence:
            await asyncio.sleep(silence.get("seconds", 3600))
        return True

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()
