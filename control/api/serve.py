"""`ApiServer(health, settings)`: the API in a daemon thread with its own event loop, apart from control's work.

`start()` listens, and raises OSError when the port is taken. uvicorn speaks HTTP; `connectors/http/server.py` bounds the
connections in number and time, as in every process.
"""

import asyncio
from collections.abc import Callable
from email.utils import formatdate

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from connectors.http.server import IDLE_SECONDS, SHUTDOWN_SECONDS, BoundedConnection, HttpServer
from connectors.runtime import metrics
from connectors.runtime.health import Health
from control.api.application import make_app
from control.api.context import Context
from schemas.settings import Settings

HEAD_BYTES = 64 * 1024
"""Limit of an incomplete request line and headers."""


class ApiServer:
    def __init__(self, health: Health, settings: Settings) -> None:
        self._health = health
        self._server = HttpServer(_Uvicorn(Context(settings, health)), settings.http_host, settings.http_port, "api")
        self.close = self._server.close

    def start(self) -> int:
        """Listen; the port."""
        port = self._server.start()
        metrics.STARTED.labels(self._health.flow).set_to_current_time()
        return port


class _Uvicorn:
    """The application behind uvicorn's HTTP protocol."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._app = make_app(context)
        self._state = ServerState()
        self._config = uvicorn.Config(
            self._serve,
            interface="asgi3",
            ws="none",
            log_config=None,
            log_level="critical",  # failures are logged in control/api/errors.py
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=int(IDLE_SECONDS),
            h11_max_incomplete_event_size=HEAD_BYTES,
        )

    async def start(self) -> Callable[[BoundedConnection], asyncio.Protocol]:
        """A factory of protocols, one per connection."""
        self._config.load()
        return lambda connection: H11Protocol(self._config, self._state, {"connection": connection})

    async def stop(self) -> None:
        """End the streams, let running requests finish within SHUTDOWN_SECONDS, close the connections."""
        await self._app.state.page.close()
        for one in list(self._state.connections):
            one.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=SHUTDOWN_SECONDS)
        self._context.close()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state.default_headers[:] = [(b"date", formatdate(usegmt=True).encode())]
        connection: BoundedConnection = scope["state"]["connection"]
        with connection.answering():
            await self._app(scope, receive, send)
