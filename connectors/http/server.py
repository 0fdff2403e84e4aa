"""The HTTP port of a process: /healthz, /readyz and /metrics, in control also the API; and the public port of `serve`.

`HttpServer(app, host, port)` serves an application in a thread with its own event loop, so that a busy flow still answers. It
bounds the number of connections and their time: a connection is closed if it does not send a complete request or read its
response in time, and at the limit the oldest idle connection is closed for a new one.

`health_app` is the aiohttp application of a flow. Lines and headers are limited to LINE_BYTES, the body to BODY_BYTES. Requests
with a foreign Host are refused, because a web page could rebind its name to this address (DNS rebinding) and read the metrics.
"""

import asyncio
import ipaddress
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Protocol, cast
from urllib.parse import urlsplit

import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from typing_extensions import override

from connectors.runtime import metrics, watchdog

CONNECTIONS = 100
REQUEST_SECONDS = 10.0
"""Time limit for a connection's first request."""
IDLE_SECONDS = 60.0
"""Time limit between two requests of a connection; Prometheus reuses connections between scrapes."""
ANSWER_SECONDS = 120.0
"""Time limit to create and send a response."""
SWEEP_SECONDS = 1.0
LINE_BYTES = 8190
BODY_BYTES = 64 * 1024
SHUTDOWN_SECONDS = 2.0
CLOSE_SECONDS = 10.0
START_SECONDS = 30.0
OWN_SUFFIXES = (".localhost", ".svc", ".cluster.local")  # not used by public names
HEALTH_PATHS = ("/healthz", "/readyz", "/metrics")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HealthPages(Protocol):
    """Data of the health pages."""

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
    """Whether a Host header may refer to this process: an IP address, a local or cluster name, or one of `names`.

    Public DNS names are accepted only if they are in `names`, so a web page's own name is refused.
    """
    name = name.lower().rstrip(".")
    if not name:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(OWN_SUFFIXES) or name in names
    return True


def health_answer(health: HealthPages, path: str) -> tuple[int, str, bytes]:
    """One of HEALTH_PATHS → status, content type, body."""
    if path == "/metrics":
        return 200, CONTENT_TYPE_LATEST, generate_latest()
    failed = health.hung if path == "/healthz" else not health.ready
    return 503 if failed else 200, "application/json", json.dumps(health.page()).encode()


def health_app(health: HealthPages, names: Collection[str] = ()) -> "AiohttpApp":
    """The application of a flow: health and metrics only."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_own_name(host_name(request.host), names):
            return web.Response(status=403, text="unknown name of this process; see SLUICE_HTTP_NAMES\n")
        return await handler(request)

    async def answer(request: web.Request) -> web.Response:
        status, content_type, body = health_answer(health, request.path)
        return web.Response(status=status, body=body, headers={"Content-Type": content_type})

    app = web.Application(middlewares=[counted, guarded], client_max_size=BODY_BYTES)
    for path in HEALTH_PATHS:
        app.router.add_get(path, answer)
    return AiohttpApp(app)


class HttpApp(Protocol):
    """An application for `HttpServer`."""

    async def start(self) -> Callable[["BoundedConnection"], asyncio.Protocol]:
        """A factory of protocols, one per connection."""

    async def stop(self) -> None:
        """Close the connections; running requests have SHUTDOWN_SECONDS."""


class AiohttpApp:
    """An aiohttp application as an `HttpApp`."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=IDLE_SECONDS,
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
        )

    async def start(self) -> Callable[["BoundedConnection"], asyncio.Protocol]:
        """A factory of protocols, one per connection."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None  # noqa: S101 - for the type checker: it is set up
        return lambda _: server()

    async def stop(self) -> None:
        """Close the connections; running requests have SHUTDOWN_SECONDS."""
        await self._runner.cleanup()


@web.middleware
async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """aiohttp's outermost middleware: mark the connection as busy during a request."""
    connection = request.transport and request.transport.get_protocol()
    if not isinstance(connection, BoundedConnection):
        return await handler(request)
    with connection.answering():
        return await handler(request)


class HttpServer:
    """One per process. `close` is only for tests."""

    def __init__(
        self,
        app: HttpApp,
        host: str,
        port: int,
        name: str = "http",
        *,
        connections: int = CONNECTIONS,
        per_address: int | None = None,
    ) -> None:
        self._app = app
        self._limit = ConnectionLimit(connections, per_address)
        self._host = host
        self._port = port
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._listening: asyncio.AbstractServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> int:
        """Listen; returns the port. Raises OSError if it is in use."""
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(START_SECONDS)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening and end the thread; running requests have SHUTDOWN_SECONDS."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        self._loop.close()

    async def _listen(self) -> int:
        protocol = await self._app.start()
        self._listening = await self._loop.create_server(
            lambda: BoundedConnection(self._limit, protocol), self._host, self._port
        )
        self._tasks = [self._loop.create_task(one) for one in (self._limit.sweep(), watchdog.beat(self._thread.name))]
        return int(cast(asyncio.Server, self._listening).sockets[0].getsockname()[1])

    async def _end(self) -> None:
        if self._listening is not None:
            self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._app.stop()


class BoundedConnection(asyncio.Protocol):
    """A connection with a deadline; delegates to the protocol of the application's HTTP library."""

    def __init__(self, limit: "ConnectionLimit", protocol: Callable[["BoundedConnection"], asyncio.Protocol]) -> None:
        self._limit = limit
        self._inner = protocol(self)
        self._transport: asyncio.Transport | None = None
        self.until = 0.0
        self.busy = False
        self.address = ""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.until = time.monotonic() + REQUEST_SECONDS
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        self._inner.connection_made(transport)
        self._limit.add(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._limit.remove(self)
        self._inner.connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    @override
    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    @override
    def pause_writing(self) -> None:
        self._inner.pause_writing()

    @override
    def resume_writing(self) -> None:
        self._inner.resume_writing()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """During a request: extend the deadline, and protect the connection from eviction."""
        self.busy, self.until = True, time.monotonic() + ANSWER_SECONDS
        try:
            yield
        finally:
            self.busy, self.until = False, time.monotonic() + IDLE_SECONDS

    def extend(self, seconds: float = ANSWER_SECONDS) -> None:
        """The response of a running request may take `seconds` from now."""
        self.until = time.monotonic() + seconds

    def cut(self, bound: str) -> None:
        """Close at once. `bound`: which one, for the count."""
        metrics.HTTP_CUT.labels(bound).inc()
        if self._transport is not None:
            self._transport.abort()


class ConnectionLimit:
    """All connections, oldest first; at most `most`, and `per_address` of one address."""

    def __init__(self, most: int, per_address: int | None) -> None:
        self._most = most
        self._per_address = per_address
        self._open: dict[BoundedConnection, None] = {}
        self._addresses: Counter[str] = Counter()
        self._any = asyncio.Event()

    def add(self, connection: BoundedConnection) -> None:
        """Admit a connection. At the limit the oldest idle one is closed, or else the new one."""
        if self._per_address is not None and self._addresses[connection.address] >= self._per_address:
            return connection.cut("address")
        if len(self._open) >= self._most:
            oldest = next((one for one in self._open if not one.busy), connection)
            self.remove(oldest)
            oldest.cut("all")
            if oldest is connection:
                return None
        self._open[connection] = None
        self._any.set()
        self._addresses[connection.address] += 1
        return None

    def remove(self, connection: BoundedConnection) -> None:
        """Forget a connection that has ended."""
        if connection in self._open:
            del self._open[connection]
            self._addresses[connection.address] -= 1
            if not self._addresses[connection.address]:
                del self._addresses[connection.address]
            if not self._open:
                self._any.clear()

    async def sweep(self) -> None:
        """Close connections that are past their deadline."""
        while True:
            await self._any.wait()
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for connection in list(self._open):
                if now > connection.until:
                    connection.cut("late")
