"""A TCP proxy that injects faults between real parts, and counts the faults that it injected.

It runs in a thread with an event loop of its own, so the system under test may be synchronous, asynchronous, or another
process. Works for everything that keeps to one address (HTTP, WebSocket, PostgreSQL); for Kafka use `log_proxy`, whose
broker tells its clients the proxy's address. Orders take effect before they return.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pytest

from local.embedded.guarded_process import LOOPBACK, free_port
from tests.support.log_listeners import ProxiedLog

T = TypeVar("T")
CHUNK_BYTES = 64 * 1024


@dataclass(slots=True)
class Counts:
    """What the proxy did so far. Bytes: `sent` from client to server, `received` from server to client."""

    accepted: int = 0
    cut: int = 0
    refused: int = 0
    held: int = 0
    delayed: int = 0
    throttled: int = 0
    sent: int = 0
    received: int = 0


class Proxy:
    """Listens on 127.0.0.1:`port` and forwards to `target`. `restore()` ends every fault."""

    def __init__(self, target: tuple[str, int], port: int | None = None) -> None:
        self.target = target
        self.port = port or free_port()
        self.counts = Counts()
        self._mode: Literal["forward", "refuse", "half_open"] = "forward"
        self._delay_seconds = 0.0
        self._bytes_per_second: float | None = None
        self._pairs: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)

    @property
    def address(self) -> str:
        """ "127.0.0.1:PORT" of the proxy."""
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> Proxy:
        self._thread.start()
        self._do(self._restore())
        return self

    def close(self) -> None:
        self._do(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def cut(self) -> int:
        """Resets every open connection (RST, no goodbye); new ones are still taken. Returns how many it cut."""
        return self._do(self._cut())

    def refuse(self) -> None:
        """Resets every open connection and closes the port: new connections are refused by the system."""
        self._do(self._refuse())

    def half_open(self) -> None:
        """Keeps connections and takes new ones, but forwards nothing in either direction from now on."""
        self._do(self._set(mode="half_open"))

    def delay(self, milliseconds: float) -> None:
        """Holds every chunk back for this long, in each direction."""
        self._do(self._set(delay_seconds=milliseconds / 1000))

    def throttle(self, bytes_per_second: float) -> None:
        """Limits each direction of each connection."""
        self._do(self._set(bytes_per_second=bytes_per_second))

    def restore(self) -> None:
        """Back to plain forwarding; what half_open held back flows again."""
        self._do(self._restore())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _set(
        self,
        mode: Literal["forward", "half_open"] | None = None,
        delay_seconds: float | None = None,
        bytes_per_second: float | None = None,
    ) -> None:
        if mode is not None:
            self._mode = mode
            self._flowing.clear()
        if delay_seconds is not None:
            self._delay_seconds = delay_seconds
        if bytes_per_second is not None:
            self._bytes_per_second = bytes_per_second

    async def _restore(self) -> None:
        self._mode, self._delay_seconds, self._bytes_per_second = "forward", 0.0, None
        self._flowing.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port)

    async def _cut(self) -> int:
        pairs = list(self._pairs)
        for pair in pairs:
            pair.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)
        self.counts.cut += len(pairs)
        return len(pairs)

    async def _refuse(self) -> None:
        self._mode = "refuse"
        if self._server is not None:
            self._server.close()
            self._server = None
        self.counts.refused += await self._cut()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "refuse":  # it was taken in the moment before the port was closed
            self.counts.refused += 1
            _reset(writer)
            return
        self.counts.accepted += 1
        pair = self._loop.create_task(self._serve(reader, writer))
        self._pairs.add(pair)
        pair.add_done_callback(self._pairs.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        try:
            if not self._flowing.is_set():
                self.counts.held += 1
                await self._flowing.wait()
            back, upstream = await asyncio.open_connection(*self.target)
            pumps = [
                self._loop.create_task(self._pump(reader, upstream, "sent")),
                self._loop.create_task(self._pump(back, writer, "received")),
            ]
            await asyncio.gather(*pumps)
            writer.close()  # both have said all: what is buffered still goes out
            upstream.close()
        except OSError:
            pass  # either side went away, or the server is down: the client sees a reset
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, upstream):
                if end is not None:
                    _reset(end)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: Literal["sent", "received"]
    ) -> None:
        while True:
            chunk = await reader.read(CHUNK_BYTES)
            if self._delay_seconds:
                self.counts.delayed += 1
                await asyncio.sleep(self._delay_seconds)
            if not self._flowing.is_set():
                self.counts.held += 1
                await self._flowing.wait()
            if not chunk:
                with suppress(OSError):
                    writer.write_eof()
                return
            async for piece in self._pace(chunk):
                setattr(self.counts, counter, getattr(self.counts, counter) + len(piece))
                writer.write(piece)
                await writer.drain()

    async def _pace(self, chunk: bytes) -> AsyncIterator[bytes]:
        """The chunk at once, or while a limit stands in pieces of a tenth of a second each."""
        at = 0
        while at < len(chunk):
            limit = self._bytes_per_second
            piece = chunk[at:] if limit is None else chunk[at : at + max(1, int(limit / 10))]
            if limit is not None:
                self.counts.throttled += 1
                await asyncio.sleep(len(piece) / limit)
            yield piece
            at += len(piece)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if writer.is_closing():
        return
    if raw is not None and raw.fileno() >= 0:
        # linger 0: close sends RST, as a crashed peer or a firewall would
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    """`proxy((host, port), port=None)` → a running Proxy, closed after the test."""
    made: list[Proxy] = []

    def make(target: tuple[str, int], port: int | None = None) -> Proxy:
        made.append(Proxy(target, port).start())
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def log_proxy(log_server: ProxiedLog, proxy: Callable[..., Proxy]) -> Proxy:
    """A proxy before the session's broker: clients that bootstrap at `.address` stay behind it."""
    return proxy(log_server.proxied_address, log_server.advertised_port)
