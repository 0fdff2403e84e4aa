"""/api/openapi.json: the table of routes as an OpenAPI 3.1 document, generated from the pydantic models."""

from functools import cache
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from control.api.errors import VERSION, ErrorAnswer
from control.api.guard import SAFE, Scope
from control.api.route import Route
from control.api.routes import ROUTES

REFERENCE = "#/components/schemas/{model}"
ALWAYS = (400, 401, 403, 503)
SAYS = {
    400: "The request does not say what the route takes.",
    401: "A token is needed.",
    403: "The token does not allow it, or a page of another site sent it.",
    404: "It is not there.",
    409: "Its state does not allow it.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    503: "Database or broker do not answer, or too much waits.",
}


async def answer(_: web.Request) -> web.Response:
    """The document."""
    return web.json_response(document())


@cache
def document() -> dict[str, Any]:
    """The document of all routes."""
    models: set[type[BaseModel]] = {ErrorAnswer}
    for route in ROUTES:
        models |= {route.gives} | ({route.body} if route.body else set())
    _, schemas = models_json_schema([(model, _mode(model)) for model in models], ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sluice",
            "version": str(VERSION),
            "description": "Watch and steer a mirror of the AT Protocol network.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _mode(model: type[BaseModel]) -> Any:
    return "validation" if any(route.body is model for route in ROUTES) else "serialization"


def _operation(route: Route) -> dict[str, Any]:
    scope = Scope.READ if route.method in SAFE else Scope.ADMIN
    answers = {"200": _answer("Done.", route.gives)}
    statuses = {*ALWAYS, *route.errors} | ({413, 415} if route.body else set())
    answers |= {str(status): _answer(SAYS[status], ErrorAnswer) for status in sorted(statuses)}
    found: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{route.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "summary": route.summary,
        "description": f"Scope: {scope}.",
        "parameters": _parameters(route),
        "responses": answers,
    }
    if route.body:
        required = any(field.is_required() for field in route.body.model_fields.values())
        schema = {"$ref": REFERENCE.format(model=route.body.__name__)}
        found["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    return found


def _parameters(route: Route) -> list[dict[str, Any]]:
    schema = route.takes.model_json_schema()
    definitions = schema.get("$defs", {})
    required = schema.get("required", ())
    found = []
    for name, own in schema.get("properties", {}).items():
        place = "path" if name in route.in_path else "query"
        inlined = definitions[own["$ref"].rpartition("/")[2]] if "$ref" in own else own
        description = inlined.get("description", "")
        found.append(
            {
                "name": name,
                "in": place,
                "required": place == "path" or name in required,
                "schema": {key: value for key, value in inlined.items() if key != "description"},
                "description": description,
            }
        )
    return found


def _answer(description: str, model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
