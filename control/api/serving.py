"""A row of the table of routes → an aiohttp handler: parse, run in a thread, answer."""

import json
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from control.api.context import CONTEXT
from control.api.errors import Handler, Invalid
from control.api.route import Route
from schemas.patterns import mistake

M = TypeVar("M", bound=BaseModel)


def handler(route: Route) -> Handler:
    """The handler of a route."""

    async def handle(request: web.Request) -> web.Response:
        context = request.app[CONTEXT]
        asked = _parameters(request, route)
        body = await _body(request, route)
        answer = await context.run(route.call, context, asked, body)
        return web.Response(text=answer.model_dump_json(), content_type="application/json")

    return handle


def _parameters(request: web.Request, route: Route) -> BaseModel:
    """Parameters of path and query. Each is given once; a list is repeated."""
    given: dict[str, Any] = {}
    for name in request.query:
        values = request.query.getall(name)
        if len(values) > 1:
            raise Invalid(f"{name[:100]} is given {len(values)} times")
        given[name] = values[0]
    for name in route.in_path:
        if name in given:
            raise Invalid(f"{name} stands in the path")
        given[name] = request.match_info[name]
    return _valid(route.takes, given)


async def _body(request: web.Request, route: Route) -> BaseModel | None:
    if route.body is None:
        return None
    text = await request.read()
    if not text and not any(field.is_required() for field in route.body.model_fields.values()):
        return _valid(route.body, {})
    if request.content_type != "application/json":
        raise Invalid("the body has to be JSON, with Content-Type: application/json", 415)
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise Invalid("the body is not JSON") from err
    return _valid(route.body, given)


def _valid(model: type[M], given: Any) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as err:
        where, what = mistake(err)
        raise Invalid(f"{'.'.join(where)[:200]}: {what}" if where else what) from err
