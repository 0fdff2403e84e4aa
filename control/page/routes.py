"""Routes of the status page: `/`, `/events` (server-sent events), and its style, script and icon under `/page/`.

The API's access rules apply. If a token is needed, `/` without one is only a form for it; the script sends it as a header of
every request. Style and script are files, so that the content security policy can forbid inline code.
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
from control.page.poller import Poller
from control.page.rendering import render_page

STREAMS = 50
BEAT_SECONDS = 15.0
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
CONTENTS = {name: (files("control.page") / "files" / name).read_bytes() for name in FILES}


def add_page(app: FastAPI) -> None:
    """Add the page to the API's application. `app.state.page` is its poller."""
    app.state.page = Poller(app.state.context)
    app.add_route("/", page)
    app.add_route("/events", events)
    app.add_route("/page/{name}", static)


async def page(request: Request) -> Response:
    """The whole page; without a required token, only the form for one."""
    poller: Poller = request.app.state.page
    if not _allowed(request):
        return HTMLResponse(render_page({}, "", locked=True), headers=SAFE_HEADERS)
    await poller.refresh()
    return HTMLResponse(render_page(poller.sections(), poller.error, locked=False), headers=SAFE_HEADERS)


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
    """Style, script and icon."""
    name = request.path_params["name"]
    if name not in FILES:
        raise HTTPException(404)
    return Response(CONTENTS[name], media_type=FILES[name], headers=SAFE_HEADERS | {"Cache-Control": "no-cache"})


def _allowed(request: Request) -> bool:
    try:
        require(request, request.app.state.context.settings, TokenScope.READ)
    except ApiError:
        return False
    return True
