"""Pages about one account or record, and the runbook: `ACCOUNT_ROUTES`, path → route.

`/search?q=…` redirects to the page of a DID, handle or AT-URI. Every other page is a template and a function that reads its
values in one of the context's threads; an error becomes a page with its message.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from connectors.runtime.errors import one_line
from control.api.context import Context
from control.api.errors import ApiError, NotFound
from control.api.guard import TokenScope, require
from control.page.poller import FAILURES
from control.page.rendering import render_page
from control.repo_details import did_of, find_record, repo_details
from protocol.syntax import is_did
from schemas.errors import OperatorError
from schemas.sql import queries

SQL = queries("api")
RECORDS = 50
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
SHOWN_ERROR = 300

Values = Mapping[str, Any]
Read = Callable[[Context, Values], Values]


def may_read(request: Request) -> bool:
    """Whether the request has the token that reading needs, if any."""
    try:
        require(request, request.app.state.context.settings, TokenScope.READ)
    except ApiError:
        return False
    return True


def _page(kind: str, read: Read) -> Callable[[Request], Any]:
    """The route of a page. `read(context, parameters of path and query)` → the template's values; {"to": path} redirects."""

    async def route(request: Request) -> Response:
        if not may_read(request):
            return HTMLResponse(render_page(kind, locked=True), headers=SAFE_HEADERS)
        context: Context = request.app.state.context
        try:
            values = await context.run(read, context, {**request.query_params, **request.path_params})
        except (ApiError, OperatorError) as err:
            status, title = (404, "Not found") if isinstance(err, NotFound) else (400, "Not understood")
            told = {"title": title, "message": one_line(err), "query": request.query_params.get("q", "")}
            return HTMLResponse(render_page("message", told), status, SAFE_HEADERS)
        except FAILURES as err:
            told = {"title": "No answer", "message": "It is requested again."}
            error = one_line(err)[:SHOWN_ERROR]
            return HTMLResponse(render_page("message", told, error=error), 503, SAFE_HEADERS)
        if "to" in values:
            return RedirectResponse(values["to"], 303, SAFE_HEADERS)
        return HTMLResponse(render_page(kind, values), headers=SAFE_HEADERS)

    return route


def search(context: Context, given: Values) -> Values:
    """The path of an account, a collection or a record."""
    text = given.get("q", "").strip()
    account, *rest = text.removeprefix("at://").rstrip("/").split("/", 2)
    if rest and not text.startswith("at://"):
        raise OperatorError("write a DID (did:plc:…), a handle (name.example) or an AT-URI (at://DID/COLLECTION/RKEY)")
    did = did_of(context, account)
    if did is None:
        raise NotFound(f"no known DID document claims the handle {account}", "write the DID")
    return {"to": "/repos/" + "/".join(quote(part, safe=":") for part in (did, *rest))}


def _repo(context: Context, given: Values) -> Values:
    did = given["did"]
    repo = repo_details(context, did) if is_did(did) else None
    if repo is None:
        raise NotFound(f"{did} is not in the mirror", "a repo is known once a mirrored relay or PDS has listed it")
    return {"title": repo["handle"] or did, "query": did, "repo": repo}


def _records(context: Context, given: Values) -> Values:
    did, collection = given["did"], given["collection"]
    values = {"collection": collection, "before": given.get("before"), "limit": RECORDS + 1}
    rows = context.repo(SQL["records_of_collection"], did, **values)
    following = rows[RECORDS - 1]["rkey"] if len(rows) > RECORDS else None
    shown = {"did": did, "collection": collection, "records": rows[:RECORDS], "following": following}
    return {"title": collection, "query": f"at://{did}/{collection}", **shown}


def _record(context: Context, given: Values) -> Values:
    did = given["did"]
    record = find_record(context, did, given["collection"], given["rkey"])
    uri = f"at://{did}/{given['collection']}/{given['rkey']}"
    if record is None:
        raise NotFound(f"{uri} is not in the mirror", "look at its repo")
    return {"title": given["rkey"], "query": uri, "did": did, "record": record, "text": pretty(record["json"])}


def pretty(text: str | None) -> str | None:
    """JSON with indentation; text that Python cannot read as it is."""
    if text is None:
        return None
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def _runbook(_: Context, __: Values) -> Values:
    return {"title": "Runbook", "entries": runbook()}


@cache
def runbook() -> list[tuple[str, list[str]]]:
    """(alert, paragraphs) of docs/runbook.md, which a wheel carries at the same place."""
    text = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text("utf-8")
    _, *sections = re.split(r"^### ", text, flags=re.MULTILINE)
    return [_entry(section.partition("\n## ")[0]) for section in sections]


def _entry(section: str) -> tuple[str, list[str]]:
    name, _, text = section.partition("\n")
    return name.strip(), [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


ACCOUNT_ROUTES = {
    "/search": _page("message", search),
    "/repos/{did}": _page("repo", _repo),
    "/repos/{did}/{collection}": _page("records", _records),
    "/repos/{did}/{collection}/{rkey}": _page("record", _record),
    "/runbook": _page("runbook", _runbook),
}
