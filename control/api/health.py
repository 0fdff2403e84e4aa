"""/healthz, /readyz and /metrics, as `connectors.process` serves them in the other processes."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from control.api.context import CONTEXT


def add_routes(app: web.Application) -> None:
    """Add them."""
    app.router.add_get("/healthz", _health)
    app.router.add_get("/readyz", _ready)
    app.router.add_get("/metrics", _metrics)


async def _health(request: web.Request) -> web.Response:
    return web.json_response(request.app[CONTEXT].health.page())


async def _ready(request: web.Request) -> web.Response:
    health = request.app[CONTEXT].health
    return web.json_response(health.page(), status=200 if health.ready else 503)


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
