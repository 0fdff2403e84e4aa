"""Routes of the status page: `/`, `/events` (server-sent), and its style, script and icon under `/page/`.

The page follows the API's rules: where a token is needed, `/` without one is an empty frame that asks for it, and its script
sends it as a header with everything it reads. Style and script are files, so that the policy forbids everything inline.
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
from control.page.markup import Markup, document, tag
from control.page.sections import sections
from control.page.watcher import Watcher

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
    """Add the page to the API's application. `app.state.page` ends it."""
    app.state.page = Watcher(app.state.context)
    app.add_route("/", page)
    app.add_route("/events", events)
    app.add_route("/page/{name}", static)


async def page(request: Request) -> Response:
    """The whole page, with everything in it if the caller may read it."""
    watcher: Watcher = request.app.state.page
    allowed = _allowed(request)
    if allowed:
        await watcher.now()
    body = frame(_parts(watcher) if allowed else {}, watcher.trouble if allowed else "", locked=not allowed)
    return HTMLResponse(body, headers=SAFE_HEADERS)


async def events(request: Request) -> Response:
    """Sections as they change: `event: page`, data `{"trouble": text, "sections": {name: HTML}}`, at first all of them."""
    require(request, request.app.state.context.settings, TokenScope.READ)
    watcher: Watcher = request.app.state.page
    if watcher.watched >= STREAMS:
        raise ApiError(503, "busy", f"{STREAMS} pages are open already", "close one")
    headers = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", **SAFE_HEADERS}
    return StreamingResponse(_changes(watcher), headers=headers)


async def _changes(watcher: Watcher) -> AsyncIterator[str]:
    sent: dict[str, Markup] = {}
    number = -1 if watcher.look is not None else watcher.number
    with watcher.watching():
        while not watcher.closing:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await watcher.next(number)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            number = watcher.number
            found = _parts(watcher)
            changed = {name: part for name, part in found.items() if sent.get(name) != part}
            sent = found
            yield f"event: page\ndata: {json.dumps({'trouble': watcher.trouble, 'sections': changed})}\n\n"


async def static(request: Request) -> Response:
    """Style, script and icon."""
    name = request.path_params["name"]
    if name not in FILES:
        raise HTTPException(404)
    return Response(CONTENTS[name], media_type=FILES[name], headers=SAFE_HEADERS | {"Cache-Control": "no-cache"})


def frame(parts: dict[str, Markup], trouble: str, *, locked: bool) -> Markup:
    """The document around the sections."""
    token = tag(
        "form",
        tag("label", "Token of the API ", tag("input", type="password", id="token", autocomplete="off", required=True)),
        tag("button", "Show", type="submit"),
        id="ask",
        hidden=not locked,
    )
    return document(
        tag(
            "html",
            tag(
                "head",
                tag("meta", charset="utf-8"),
                tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
                tag("title", "Sluice"),
                tag("link", rel="icon", href="/page/icon.svg", type="image/svg+xml"),
                tag("link", rel="stylesheet", href="/page/page.css"),
                tag("script", src="/page/page.js", defer=True),
            ),
            tag(
                "body",
                tag("a", "To the content", href="#content", class_="skip"),
                tag(
                    "header",
                    tag("h1", "Sluice"),
                    tag("p", "as of this request", id="live"),
                    tag(
                        "nav",
                        tag("a", "API", href="/api/openapi.json"),
                        tag("a", "Metrics", href="/metrics"),
                        aria_label="Elsewhere",
                    ),
                ),
                tag("p", trouble, id="trouble", role="alert", hidden=not trouble),
                tag("p", "", id="said", role="status", aria_live="polite"),
                token,
                tag(
                    "noscript",
                    tag(
                        "p", "A token is needed, and this page sends it by JavaScript. `sluice status` shows the same."
                    ),
                )
                if locked
                else None,
                tag("main", list(parts.values()), id="content", tabindex="-1"),
            ),
            lang="en",
        )
    )


def _parts(watcher: Watcher) -> dict[str, Markup]:
    return sections(watcher.look, watcher.course) if watcher.look is not None else {}


def _allowed(request: Request) -> bool:
    try:
        require(request, request.app.state.context.settings, TokenScope.READ)
    except ApiError:
        return False
    return True
