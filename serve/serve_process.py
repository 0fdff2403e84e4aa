"""The process `serve`: `run(settings, health)` listens at SLUICE_SERVE_LISTEN and serves until `STOP`."""

import logging

from connectors.http.server import AiohttpApp, HttpServer
from connectors.runtime.health import Health
from connectors.runtime.stop import STOP
from schemas.errors import OperatorError
from schemas.settings import Settings
from serve.application import make_app
from serve.context import ServeContext

CHECK_SECONDS = 0.5

log = logging.getLogger("serve")


def run(settings: Settings, health: Health) -> None:
    """Serve until `STOP`. Raises OperatorError if the address cannot be listened on."""
    context = ServeContext(settings)
    server = listen(settings, context)
    try:
        while not STOP.wait(CHECK_SECONDS):
            health.report("idle")
            health.progressed()
    finally:
        server.close()
        context.close()


def listen(settings: Settings, context: ServeContext) -> HttpServer:
    """The listening server. Raises OperatorError."""
    host, _, port = settings.serve_listen.rpartition(":")
    tuning = settings.tuning
    server = HttpServer(
        AiohttpApp(make_app(context)),
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
