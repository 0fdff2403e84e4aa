"""The HTTP port of a process: /healthz, /readyz and /metrics for probes and Prometheus; in control the API as well.

`Server(app, host, port)` serves an aiohttp application in one thread with a loop of its own, so that a busy flow still
answers. Connections are bounded in number and in time: one that sends no whole request, or does not read its answer, is
closed, and at the limit the oldest that is not being answered makes room for the next. Requests are bounded by aiohttp
(a line and a header by LINE_BYTES, the body by the application's `client_max_size`).

`health_app` is the application of a flow. Who asks under a name that is not ours is refused: a web page whose own host name
was rebound to this address would read the figures otherwise.
"""

import asyncio
import ipaddress
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import override

from connectors.runtime import watchdog

CONNECTIONS = 100
REQUEST_SECONDS = 10.0
"""For the first request of a connection to arrive."""
IDLE_SECONDS = 60.0
"""For the next request of a connection: Prometheus keeps its connections between two scrapes."""
ANSWER_SECONDS = 120.0
"""For a request to be answered and its answer to be read."""
SWEEP_SECONDS = 1.0
LINE_BYTES = 8190
BODY_BYTES = 64 * 1024
SHUTDOWN_SECONDS = 2.0
CLOSE_SECONDS = 10.0
START_SECONDS = 30.0
OWN_SUFFIXES = (".localhost", ".svc", ".cluster.local")  # of no public name

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Health(Protocol):
    """What the pages show."""

    hung: str

    @property
    def ready(self) -> bool: ...

    def page(self) -> dict[str, object]:
        """The body of /healthz and /readyz."""


def host_name(host: str) -> str:
    """`HOST[:PORT]` without its port and brackets; '' for anything else."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_own_name(name: str, names: Collection[str] = ()) -> bool:
    """Whether a Host can be meant for this process: an IP address, a name without a dot or of the cluster, one of `names`.

    No public DNS name is among them but those that an operator gave: a web page's own name is always foreign.
    """
    name = name.lower().rstrip(".")
    if not name:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(OWN_SUFFIXES) or name in names
    return True


def add_health(app: web.Application, health: Health) -> None:
    """The routes that every process has."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response(health.page(), status=503 if health.hung else 200)

    async def readyz(_: web.Request) -> web.Response:
        return web.json_response(health.page(), status=200 if health.ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)


def health_app(health: Health, names: Collection[str] = ()) -> web.Application:
    """The application of a flow: health and metrics, and nothing else."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_own_name(host_name(request.host), names):
            return web.Response(status=403, text="not addressed to this process; see SLUICE_HTTP_NAMES\n")
        return await handler(request)

    app = web.Application(middlewares=[guarded], client_max_size=BODY_BYTES)
    add_health(app, health)
    return app


class Server:
    """One per process. `start` listens; `close` is for tests, a process just ends."""

    def __init__(self, app: web.Application, host: str, port: int, name: str = "http") -> None:
        self._app = app
        self._host = host
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> int:
        """Listen; the port. Raises OSError when it is taken."""
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_SECONDS)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening and end the thread; open requests have a moment."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        self._loop.close()

    async def _listen(self) -> int:
        door = _Door()
        self._app.middlewares.insert(0, door.counted)
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=IDLE_SECONDS,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
        )
        await self._runner.setup()
        server = self._runner.server
        assert server is not None  # noqa: S101 - for the type checker: it is set up
        self._listening = await self._loop.create_server(lambda: _Guest(door, server()), self._host, self._port)
        self._tasks = [self._loop.create_task(one) for one in (door.sweep(), watchdog.beat(self._thread.name))]
        return int(self._listening.sockets[0].getsockname()[1])

    async def _end(self) -> None:
        if self._listening is not None:
            self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()


class _Guest(asyncio.Protocol):
    """A connection: everything goes to aiohttp's handler, and the door knows of it."""

    def __init__(self, door: "_Door", inner: Any) -> None:
        self._door = door
        self.inner = inner
        self.transport: asyncio.Transport | None = None
        self.until = 0.0
        self.answering = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a TCP server
        self.transport = transport
        self.until = time.monotonic() + REQUEST_SECONDS
        self.inner.connection_made(transport)
        self._door.enter(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leave(self)
        self.inner.connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        self.inner.data_received(data)

    @override
    def eof_received(self) -> Any:
        return self.inner.eof_received()

    @override
    def pause_writing(self) -> None:
        self.inner.pause_writing()

    @override
    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def cut(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()


class _Door:
    """All connections, the oldest first."""

    def __init__(self) -> None:
        self._guests: dict[Any, _Guest] = {}  # by aiohttp's handler

    def enter(self, guest: _Guest) -> None:
        """One more; at the limit the oldest that is not being answered leaves, or else this one."""
        if len(self._guests) >= CONNECTIONS:
            oldest = next((one for one in self._guests.values() if not one.answering), guest)
            self._guests.pop(oldest.inner, None)
            oldest.cut()
            if oldest is guest:
                return
        self._guests[guest.inner] = guest

    def leave(self, guest: _Guest) -> None:
        """It has ended."""
        self._guests.pop(guest.inner, None)

    async def sweep(self) -> None:
        """Cut what takes too long."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for guest in list(self._guests.values()):
                if now > guest.until:
                    guest.cut()

    @property
    def counted(self) -> Any:
        """The outermost middleware: a request has arrived, and is answered."""

        @web.middleware
        async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
            guest = self._guests.get(request.protocol)
            if guest is None:
                return await handler(request)
            guest.answering, guest.until = True, time.monotonic() + ANSWER_SECONDS
            try:
                return await handler(request)
            finally:
                guest.answering, guest.until = False, time.monotonic() + IDLE_SECONDS

        return counted
