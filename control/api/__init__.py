"""The HTTP API of control: `make_app(context) -> aiohttp.web.Application`, served by `control.api.serve`.

    /api/…         the routes of `control/api/routes.py`: typed with pydantic models, described by /api/openapi.json
    /healthz, /readyz, /metrics    as in every process, open to everyone

An answer is a model as JSON, or `{"version": 1, "error": {"code", "message", "remedy"}}` with a 4xx or 5xx status. Every list is
paged: `limit` bounds a page, `cursor` of the answer asks for the next one, null ends it. Who may call what: `control/api/guard.py`.
"""

from aiohttp import web

from connectors.http.server import add_health
from control.api import errors, openapi
from control.api.context import CONTEXT, Context
from control.api.guard import guarded
from control.api.routes import ROUTES
from control.api.serving import handler
from control.page import routes as page

BODY_BYTES = 16 * 1024 * 1024


def make_app(context: Context) -> web.Application:
    """The whole application. Nothing connects before the first request; the context is closed with the app."""
    app = web.Application(middlewares=[errors.answered, guarded], client_max_size=BODY_BYTES)
    app[CONTEXT] = context
    for route in ROUTES:
        app.router.add_route(route.method, route.path, handler(route))
    app.router.add_get("/api/openapi.json", openapi.answer)
    add_health(app, context.health)
    page.add_routes(app)

    async def close(_: web.Application) -> None:
        context.close()

    app.on_cleanup.append(close)
    return app
