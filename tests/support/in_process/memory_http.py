"""HTTP between aiohttp's client and aiohttp's servers in one event loop: real requests and responses, no sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

HIGH_WATER_BYTES = 64 * 1024
SLICE_BYTES = 64 * 1024


class _End(asyncio.Transport):
    """One end of a connection. What is written here arrives at the other end's protocol, in the loop's next turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, names: dict[str, Any]) -> None:
        super().__init__(names)
        self._loop = loop
        self.protocol = protocol
        self.other: _End = self
        self._arrived = bytearray()
        self._ended = False  # the other end sends no more
        self._lost = False
        self._closing = False
        self._reading = True
        self._due = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing and data:
            self.other._arrived += data
            self.other._wake()
            if len(self.other._arrived) > HIGH_WATER_BYTES and not self.protocol._paused:  # type: ignore[attr-defined]
                self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return len(self.other._arrived)

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = self.other._ended = True
            self.other._wake()
            self._loop.call_soon(self._lose)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._wake()

    def is_reading(self) -> bool:
        return self._reading

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def _wake(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._due = False
        if not self._reading or self._closing:
            return
        if self._arrived:
            data = bytes(self._arrived[:SLICE_BYTES])
            del self._arrived[:SLICE_BYTES]
            if len(self._arrived) <= HIGH_WATER_BYTES and self.other.protocol._paused:  # type: ignore[attr-defined]
                self.other.protocol.resume_writing()
            self.protocol.data_received(data)
            self._wake()
        elif self._ended:
            self._closing = True
            self._lose()

    def _lose(self) -> None:
        if not self._lost:
            self._lost = True
            self.protocol.connection_lost(None)


class MemoryNetwork:
    """Servers by host and port. A host that is not among them refuses the connection."""

    def __init__(self) -> None:
        self._runners: dict[tuple[str, int], web.AppRunner] = {}

    async def serve(self, application: web.Application) -> str:
        """Start serving the application. Returns its URL."""
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        place = "127.0.0.1", 20_000 + len(self._runners)
        self._runners[place] = runner
        return f"http://{place[0]}:{place[1]}"

    async def serve_names(self, _server: object) -> str:
        """DNS needs sockets: nothing answers here."""
        return "127.0.0.1:9"

    async def close(self) -> None:
        """Stop all servers."""
        for runner in self._runners.values():
            await runner.cleanup()

    def connect(self, host: str, port: int, client: ResponseHandler) -> None:
        """Connect a client to the server there. Raises ConnectionRefusedError."""
        runner = self._runners.get((host, port))
        if runner is None or runner.server is None:
            raise ConnectionRefusedError(111, f"nothing listens at {host}:{port}")
        loop = asyncio.get_running_loop()
        server: Any = runner.server()
        here = _End(loop, client, {"peername": (host, port), "sockname": ("127.0.0.1", 1)})
        there = _End(loop, server, {"peername": ("127.0.0.1", 1), "sockname": (host, port)})
        here.other, there.other = there, here
        server.connection_made(there)
        client.connection_made(here)


class MemoryConnector(aiohttp.BaseConnector):
    """Connects to the servers of a MemoryNetwork."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(limit=0)
        self._network = network

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        client = self._factory()
        try:
            self._network.connect(req.url.host, req.url.port, client)
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        return client
