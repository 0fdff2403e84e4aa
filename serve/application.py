"""`make_app(context, hub)` → the aiohttp application: routes and guard.

A module of routes has a function `add_routes(app)` and is listed in ROUTES. Its handlers find settings, pooled database
connections and threads in `request.app[CONTEXT]`, and raise `XrpcError` for an error of the XRPC kind.
"""

from collections.abc import Callable

from aiohttp import web

from connectors.http.server import BODY_BYTES, counted
from serve.context import CONTEXT, ServeContext
from serve.guard import ClientGuard, answer_errors
from serve.stream import v1, v2
from serve.stream.hub import Hub
from serve.xrpc.routes import add_routes as xrpc_routes

ROUTES: tuple[Callable[[web.Application], None], ...] = (xrpc_routes,)


def make_app(context: ServeContext, hub: Hub | None = None) -> web.Application:
    """Build the application. It connects to the database on the first request. `hub`: it follows the log; None: no streams."""
    guard = ClientGuard(context.settings)
    app = web.Application(middlewares=[counted, answer_errors, guard.middleware], client_max_size=BODY_BYTES)
    app[CONTEXT] = context
    if hub is not None:
        hub.add_to(app)
        v1.add_routes(app)
        v2.add_routes(app)
    for add_routes in ROUTES:
        add_routes(app)
    return app
