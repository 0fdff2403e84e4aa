"""Access control and the limit of a request's size: `Guard`, the outermost middleware.

- `SLUICE_API_TOKEN` allows everything, `SLUICE_API_READ_TOKEN` reading, as `Authorization: Bearer …`.
- Without any token the API is open on a loopback address and closed on others.
- A page of another site in the operator's browser must not reach an open loopback API: a request is refused if its Host is
  not a name of loopback (DNS rebinding), or if the browser sends it on behalf of another site.

Health and metrics need no token. Their Host must be an IP address, a name of this machine or cluster, or in SLUICE_HTTP_NAMES.
Tokens are compared in constant time and never logged.
"""

import hmac
import ipaddress
from enum import StrEnum
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from connectors.http.server import HEALTH_PATHS, LINE_BYTES, host_name, is_own_name
from control.api.errors import ApiError, Invalid
from schemas.settings import Settings

BODY_BYTES = 16 * 1024 * 1024
SAFE = ("GET", "HEAD", "OPTIONS")


class TokenScope(StrEnum):
    READ = "read"
    ADMIN = "admin"


class Guard:
    """ASGI middleware: checks every request, and bounds its body by BODY_BYTES."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the error of a refused request, or pass the request on."""
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY_BYTES:
                raise HTTPException(413)
            return message

        try:
            check(Request(scope), self._settings)
        except ApiError as err:
            return await err.response()(scope, receive, send)
        return await self._app(scope, bounded, send)


def check(request: Request, settings: Settings) -> None:
    """Raise ApiError for long lines, foreign names, pages of other sites, and below /api/ for missing scopes."""
    scope, path = request.scope, request.scope["path"]
    lines = [scope["raw_path"] + scope["query_string"], *(name + value for name, value in scope["headers"])]
    if max(map(len, lines)) > LINE_BYTES:
        raise Invalid(f"the URL or a header has more than {LINE_BYTES} bytes")
    if path in HEALTH_PATHS:
        refuse_foreign_names(request, settings)
    else:
        refuse_foreign_pages(request, settings)
    if path.startswith("/api/"):
        require(request, settings, TokenScope.READ if request.method in SAFE else TokenScope.ADMIN)


def refuse_foreign_names(request: Request, settings: Settings) -> None:
    """Raise ApiError 403 if the Host is a public name that is not in the settings (DNS rebinding)."""
    host = request.headers.get("Host", "")
    if not is_own_name(host_name(host), settings.http_names):
        raise ApiError(
            403,
            "foreign_host",
            f"unknown name of this process: Host {host[:100]}",
            "use its IP address, or add the name to SLUICE_HTTP_NAMES",
        )


def refuse_foreign_pages(request: Request, settings: Settings) -> None:
    """Raise ApiError 403 for requests that a page of another site makes a browser send."""
    host = request.headers.get("Host", "")
    if not needs_token(settings) and not is_loopback(host_name(host)):
        raise ApiError(403, "foreign_host", f"not a local name: Host {host[:100]}", "use localhost, or set a token")
    if request.method in SAFE:
        return
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if (origin is not None and urlsplit(origin).netloc != host) or site not in ("same-origin", "none"):
        raise ApiError(
            403, "foreign_origin", "sent by a page of another site", "use the page or the API of this address"
        )


def require(request: Request, settings: Settings, needed: TokenScope) -> None:
    """Raise ApiError 401 without a valid token where one is needed, 403 where its scope is too small."""
    if not needs_token(settings):
        return
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    sent = token.strip().encode("latin-1").decode("utf-8", "surrogateescape")  # Starlette reads headers as latin-1
    given = token_scope(settings, sent) if kind.lower() == "bearer" else None
    if given is None:
        unset = not (settings.api_token or settings.api_read_token)
        remedy = "set SLUICE_API_TOKEN, and send it" if unset else "send it"
        raise ApiError(401, "unauthorized", "a valid token is needed", f"{remedy} as Authorization: Bearer TOKEN")
    if needed == TokenScope.ADMIN and given != TokenScope.ADMIN:
        raise ApiError(403, "read_only", "this token allows reading only", "use the token of SLUICE_API_TOKEN")


def needs_token(settings: Settings) -> bool:
    """Whether a token is needed: off loopback, and wherever one is set."""
    return bool(settings.api_token or settings.api_read_token) or not is_loopback(settings.http_host)


def token_scope(settings: Settings, token: str) -> TokenScope | None:
    """The scope of a token. Always compares with both tokens, so that the time taken reveals nothing."""
    given = token.encode("utf-8", "surrogatepass")
    admin = hmac.compare_digest(given, settings.api_token.encode()) and bool(settings.api_token)
    read = hmac.compare_digest(given, settings.api_read_token.encode()) and bool(settings.api_read_token)
    return TokenScope.ADMIN if admin else TokenScope.READ if read else None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is loopback."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
