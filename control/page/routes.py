"""Routes of the overview: `/`, `/events` (server-sent events), and the files of all pages under `/page/`.

The API's access rules apply. If a token is needed, a page without one is only a form for it; the script then requests the same
address with the token as a header. Style and scripts are files, so that the content security policy can forbid inline code.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from importlib.resources import files

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from control.api.errors import ApiError
from control.api.guard import TokenScope, require
from control.page.account_routes import ACCOUNT_ROUTES, SAFE_HEADERS, may_read
from control.page.poller import Poller
from control.page.rendering import render_page

STREAMS = 50
BEAT_SECONDS = 15.0
FILES = {
    **{
        "page.css": "text/css",
        "page.js": "text/javascript",
        "charts.js": "text/javascript",
        "icon.svg": "image/svg+xml",
    },
    **{"vendor/uPlot.css": "text/css", "vendor/uPlot.js": "text/javascript"},
}
CONTENTS = {
    name.rpartition("/")[2]: ((files("control.page") / "files" / name).read_bytes(), kind)
    for name, kind in FILES.items()
}


def add_page(app: FastAPI) -> None:
    """Add the pages to the API's application. `app.state.page` is the overview's poller."""
    app.state.page = Poller(app.state.context)
    app.add_route("/", page)
    app.add_route("/events", events)
    app.add_route("/page/{name}", static)
    for path, route in ACCOUNT_ROUTES.items():
        app.add_route(path, route)


async def page(request: Request) -> Response:
    """The overview; without a required token, only the form for one."""
    poller: Poller = request.app.state.page
    if not may_read(request):
        return HTMLResponse(render_page("overview", locked=True), headers=SAFE_HEADERS)
    await poller.refresh()
    return HTMLResponse(
        render_page("overview", {"sections": poller.sections()}, error=poller.error), headers=SAFE_HEADERS
    )


async def events(request: Request) -> Response:
    """Sections as they change: `event: page`, data `{"trouble": text, "sections": {name: HTML}}`; the first has them all."""
    require(request, request.app.state.context.settings, TokenScope.READ)
    poller: Poller = request.app.state.page
    if poller.streams >= STREAMS:
        raise ApiError(503, "busy", f"{STREAMS} pages are open already", "close one")
    headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", **SAFE_HEADERS}
    return StreamingResponse(_changes(poller), headers=headers)


async def _changes(poller: Poller) -> AsyncIterator[str]:
    sent: dict[str, str] = {}
    number = -1 if poller.snapshot is not None else poller.number
    with poller.stream():
        while not poller.closing:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await poller.next(number)
            except TimeoutError:
                yield ": keep-alive\n\n"
                continue
            number = poller.number
            found = poller.sections()
            changed = {name: html for name, html in found.items() if sent.get(name) != html}
            sent = found
            yield f"event: page\ndata: {json.dumps({'trouble': poller.error, 'sections': changed})}\n\n"


async def static(request: Request) -> Response:
    """Style, scripts and icon."""
    found = CONTENTS.get(request.path_params["name"])
    if found is None:
        raise HTTPException(404)
    content, kind = found
    return Response(content, media_type=kind, headers=SAFE_HEADERS | {"Cache-Control": "no-cache"})
