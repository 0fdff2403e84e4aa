"""`make_app(context)` → the FastAPI application: routes, guard, error answers, OpenAPI document."""

from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import Response

from connectors.http.server import HEALTH_PATHS, HealthPages, health_answer
from control.api import dead_letter_routes, errors, filter_routes, job_routes, mirror_routes
from control.api.context import Context
from control.api.guard import Guard
from control.api.router import documented
from control.page.routes import add_page

DESCRIPTION = (
    "Monitor and control a mirror of the AT Protocol network. GET needs a read token, other methods an admin token."
)
ROUTERS = [
    (mirror_routes.ROUTER, "/api/v1", "/api"),
    (dead_letter_routes.ROUTER, "/api/v1/dead-letters", "/api/dead-letters"),
    (job_routes.ROUTER, "/api/v1/jobs", "/api/backfill"),
    (filter_routes.ROUTER, "/api/v1/filters", "/api/filters"),
]
"""Each router with its path and the path before v1."""


def make_app(context: Context) -> FastAPI:
    """Build the application. It connects on the first request."""
    app = FastAPI(
        title="Sluice",
        version=str(errors.VERSION),
        description=DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=dict.fromkeys(errors.HANDLED, errors.answer),
        generate_unique_id_function=attrgetter("name"),
    )
    app.state.context = context
    app.add_middleware(Guard, settings=context.settings)
    for router, path, alias in ROUTERS:
        app.include_router(router, prefix=path, responses=documented(400, 401, 403, 503))
        app.include_router(router, prefix=alias, include_in_schema=False)
    for path in HEALTH_PATHS:
        app.add_route(path, _health(context.health, path))
    add_page(app)
    app.openapi = cache(lambda: _document(app))  # type: ignore[method-assign]  # FastAPI's way to change the document
    return app


def _health(health: HealthPages, path: str) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        status, content_type, body = health_answer(health, path)
        return Response(body, status, {"Content-Type": content_type})

    return answer


def _document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with our tokens, and without status 422: `errors.answer` turns invalid requests into 400."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    components = document["components"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document | {"security": [{"token": []}, {}]}
