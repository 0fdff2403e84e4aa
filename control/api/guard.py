"""Who may call what. Two scopes: `read` (GET) and `admin` (everything that changes something).

- `SLUICE_API_TOKEN` allows everything, `SLUICE_API_READ_TOKEN` reading, as `Authorization: Bearer …`.
- Without any token the API is open where it listens on loopback, and closed elsewhere.
- A web page that the operator has open must not reach an open loopback API: a request whose Host is not a name of
  loopback (a rebound DNS name), or that a browser sends on behalf of another site, is refused.

Health and metrics need no token, and answer under an IP address, a name of this machine or cluster, and SLUICE_HTTP_NAMES. Tokens are compared in constant time and never logged.
"""

import hmac
import ipaddress
from enum import StrEnum
from urllib.parse import urlsplit

from aiohttp import web

from connectors.http.server import host_name, is_own_name
from control.api.context import CONTEXT
from control.api.errors import ApiError, Handler
from schemas.settings import Settings

OPEN = ("/healthz", "/readyz", "/metrics")
SAFE = ("GET", "HEAD", "OPTIONS")


class Scope(StrEnum):
    """What a caller may do."""

    READ = "read"
    ADMIN = "admin"


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse browsers that act for other sites everywhere, and callers without the scope below /api/."""
    if request.path in OPEN:
        refuse_foreign_names(request)
    else:
        refuse_foreign_pages(request)
    if request.path.startswith("/api/"):
        require(request, Scope.READ if request.method in SAFE else Scope.ADMIN)
    return await handler(request)


def refuse_foreign_names(request: web.Request) -> None:
    """Raises ApiError 403 where the Host is a public name that nobody gave this process: a page's own, rebound to it."""
    if not is_own_name(host_name(request.host), request.app[CONTEXT].settings.http_names):
        raise ApiError(
            403,
            "foreign_host",
            f"not addressed to this process: Host {request.host[:100]}",
            "use its IP address, or add the name to SLUICE_HTTP_NAMES",
        )


def refuse_foreign_pages(request: web.Request) -> None:
    """Raises ApiError 403 for what a page of another site makes a browser send."""
    settings = request.app[CONTEXT].settings
    if not needs_token(settings) and not is_loopback(host_name(request.host)):
        raise ApiError(
            403,
            "foreign_host",
            f"not addressed to this machine: Host {request.host[:100]}",
            "use localhost, or set a token",
        )
    if request.method in SAFE:
        return
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if (origin is not None and urlsplit(origin).netloc != request.host) or site not in ("same-origin", "none"):
        raise ApiError(
            403, "foreign_origin", "sent by a page of another site", "use the page or the API of this address"
        )


def require(request: web.Request, scope: Scope) -> None:
    """Raises ApiError 401 without a token where one is needed, 403 where it does not allow this."""
    settings = request.app[CONTEXT].settings
    if not needs_token(settings):
        return
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    held = held_scope(settings, token.strip()) if kind.lower() == "bearer" else None
    if held is None:
        unset = not (settings.api_token or settings.api_read_token)
        remedy = "set SLUICE_API_TOKEN, and send it" if unset else "send it"
        raise ApiError(401, "unauthorized", "a valid token is needed", f"{remedy} as Authorization: Bearer TOKEN")
    if scope == Scope.ADMIN and held != Scope.ADMIN:
        raise ApiError(403, "read_only", "this token allows reading only", "use the token of SLUICE_API_TOKEN")


def needs_token(settings: Settings) -> bool:
    """Tokens are needed off loopback, and wherever one is set."""
    return bool(settings.api_token or settings.api_read_token) or not is_loopback(settings.http_host)


def held_scope(settings: Settings, token: str) -> Scope | None:
    """The scope of a token; both comparisons are always made, so that time tells nothing."""
    given = token.encode("utf-8", "surrogatepass")
    admin = hmac.compare_digest(given, settings.api_token.encode()) and bool(settings.api_token)
    read = hmac.compare_digest(given, settings.api_read_token.encode()) and bool(settings.api_read_token)
    return Scope.ADMIN if admin else Scope.READ if read else None


def is_loopback(host: str) -> bool:
    """A name or an address of this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
