"""The process `serve`: `run(settings, health)` listens at SLUICE_SERVE_LISTEN and serves until `STOP`."""

import logging

from connectors.http.server import AiohttpApp, HttpServer
from connectors.runtime.health import Health
from connectors.runtime.stop import STOP
from schemas.errors import OperatorError
from schemas.settings import Settings
from serve.application import make_app
from serve.context import ServeContext
from serve.stream.hub import Hub

CHECK_SECONDS = 1.0

log = logging.getLogger("serve")


def run(settings: Settings, health: Health) -> None:
    """Serve until `STOP`. Raises OperatorError if the address cannot be listened on."""
    context, hub = ServeContext(settings), Hub(settings, health)
    server = listen(settings, context, hub)
    try:
        while not STOP.wait(CHECK_SECONDS):
            hub.check()
    finally:
        server.close()
        context.close()


def listen(settings: Settings, context: ServeContext, hub: Hub | None = None) -> HttpServer:
    """The listening server. Raises OperatorError."""
    host, _, port = settings.serve_listen.rpartition(":")
    tuning = settings.tuning
    server = HttpServer(
        AiohttpApp(make_app(context, hub)),
        host.strip("[]"),
        int(port),
        "serve",
        connections=tuning.serve_connections,
        per_address=tuning.serve_address_connections,
    )
    try:
        log.info("listening", extra={"host": host, "port": server.start()})
    except OSError as err:
        raise OperatorError(
            f"SLUICE_SERVE_LISTEN: {settings.serve_listen} cannot be listened on ({err.strerror}); choose another port,"
            " or 0 for a free one"
        ) from err
    return server
