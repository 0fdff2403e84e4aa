"""What the route modules share: `Router`, the types of parameters, documented error answers.

A handler is a plain function `(context, parameters…) → model`. `Router` runs it in one of the context's threads, and rejects
unknown and repeated query parameters.
"""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.routing import APIRoute
from typing_extensions import override

from control.api.context import Context
from control.api.errors import ErrorAnswer, Invalid

MAX_ID = 2**63 - 1
STATUSES = {
    400: "The request is invalid.",
    401: "A token is needed.",
    403: "The token does not permit this, or a page of another site sent the request.",
    404: "Not found.",
    409: "Not possible in the current state.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    503: "Database or broker do not answer, or too many requests are queued.",
}


async def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def checked(request: Request) -> None:
    """Raise Invalid for unknown or repeated query parameters, and for a body that is not JSON."""
    route: APIRoute = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params}
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known:
            raise Invalid(f"{name[:100]}: this route has no such parameter")
        if times > 1:
            raise Invalid(f"{name[:100]} is given {times} times")
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if route.body_field and kind != "application/json" and await request.body():
        raise Invalid("the body has to be JSON, with Content-Type: application/json", 415)


Ctx = Annotated[Context, Depends(context_of)]
Limit = Annotated[int, Query(ge=1, le=500, description="maximum rows")]
Cursor = Annotated[
    str, Query(max_length=4000, pattern=r"^[A-Za-z0-9_-]*$", description="`cursor` of the previous page")
]


class Router(APIRouter):
    """Routes whose handlers block: each runs in a thread of the context."""

    def __init__(self) -> None:
        super().__init__(dependencies=[Depends(checked)])

    @override
    def add_api_route(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:
        @wraps(endpoint)
        async def in_thread(context: Context, **given: Any) -> Any:
            return await context.run(endpoint, context, **given)

        super().add_api_route(path, in_thread, **kwargs)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error answers of a route for the OpenAPI document."""
    return {status: {"model": ErrorAnswer, "description": STATUSES[status]} for status in statuses}
