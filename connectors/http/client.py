"""HTTP to untrusted hosts: a guarded session, bounded responses, typed failures.

`open_session(settings)` creates the session for all requests of a process. Its socket factory checks every address, so private,
loopback and link-local addresses are unreachable, whether by name, literal, redirect or DNS rebinding. `fetch` reads a response
up to a size. It returns any HTTP status, and raises `HostRefused` (permanent) or `Unreachable` (transient, except for its two
subclasses).
"""

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from math import isnan
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver

from connectors.http.addresses import address_allowed
from protocol.encoding.bounded_json import BadJson, JsonLimits, decode
from protocol.encoding.safe_text import printable
from schemas.settings import Settings

LIST_JSON = JsonLimits(1024 * 1024, 40_000)
"""Pages of listRepos and listHosts. A page of 1,000 repos has 200 KB and 6,000 items; some servers ignore `limit`."""

DOCUMENT_JSON = JsonLimits(64 * 1024, 4_096)
"""A DID document: 1 KB for most accounts."""

SMALL_JSON = JsonLimits(16 * 1024, 512)
"""XRPC errors and answers of a few fields: getLatestCommit, getRepoStatus, health pages."""

MAX_REDIRECTS = 4
REDIRECTS = (301, 302, 303, 307, 308)
TOTAL_SECONDS = 30.0
IDLE_SECONDS = 15.0
LONGEST_WAIT_SECONDS = 86_400.0
_WELL_KNOWN_PORTS = (80, 443)
_FIRST_FREE_PORT = 1024  # lower ports are for mail, shells and other services, not for a PDS


class HostRefused(Exception):
    """The URL or its address is not allowed; the message gives the reason."""


class Unreachable(Exception):
    """No complete response: DNS, connection, TLS, timeout, size or truncation. Transient."""


class BodyTooLarge(Unreachable):
    """The response is longer than the limit."""


class NoSuchHost(Unreachable):
    """DNS answered that the name has no address."""


class _RefusedAddress(OSError):
    """Raised by the socket factory; the connection code expects an OSError."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, limits: JsonLimits) -> Any:
        """The decoded body. Raises BadJson."""
        return decode(self.body, limits)

    @property
    def error(self) -> str | None:
        """Name of the XRPC error, such as RepoNotFound."""
        return xrpc_error(self.body)[0] or None


def xrpc_error(body: bytes) -> tuple[str, str]:
    """Name and message of an XRPC error body, printable; '' if missing."""
    try:
        value = decode(body, SMALL_JSON)
    except BadJson:
        return "", ""
    if not isinstance(value, dict):
        return "", ""
    name, message = value.get("error"), value.get("message")
    return (
        printable(name, 100) if isinstance(name, str) else "",
        printable(message) if isinstance(message, str) else "",
    )


def origin(url: str) -> str:
    """Scheme, host and port of a URL."""
    parts = _split_origin(url)
    return f"{parts.scheme}://{parts.netloc}"


def _split_origin(url: str) -> SplitResult:
    """The URL up to its path. `urlsplit` caches its results, and origins repeat. Raises ValueError."""
    path = url.find("/", len("https://"))
    return urlsplit(url if path < 0 else url[:path])


def redirected(url: str, location: str) -> str:
    """The target URL of a redirect of `url`. Raises HostRefused."""
    try:
        return urljoin(url, location)
    except ValueError as err:
        raise HostRefused(f"{location[:200]!r} is not a URL") from err


def check_url(url: str, *, allow_private: bool) -> None:
    """Raise HostRefused for a scheme, user information or a port that no server of the network uses."""
    try:
        parts = _split_origin(url)
        port = parts.port
    except ValueError as err:
        raise HostRefused(f"{url[:200]!r} is not a URL") from err
    if " " in url or not (url.isascii() and url.isprintable()):
        raise HostRefused(f"{url[:200]!r} has characters that are not allowed in a URL")
    if parts.scheme not in (("https", "wss", "http", "ws") if allow_private else ("https", "wss")):
        raise HostRefused(f"scheme {parts.scheme[:20]!r} of {url[:200]!r}")
    if not parts.hostname:
        raise HostRefused(f"no host in {url[:200]!r}")
    if parts.username is not None or parts.password is not None:
        raise HostRefused(f"user information in the URL of {parts.hostname}")
    if port is not None and not allow_private and not _port_allowed(port):
        raise HostRefused(f"port {port} of {parts.hostname}")


def open_session(
    settings: Settings,
    *,
    connections: int = 0,
    resolver: AbstractResolver | None = None,
    reuse: bool = True,
    websockets: bool = False,
) -> aiohttp.ClientSession:
    """The session of a process; call it in the loop that uses it. `connections`: limit of sockets; 0: no limit.

    `resolver`: replaces the system's resolver. `reuse`: keep a connection for the next request to its host. `websockets`: check
    their redirects, which aiohttp follows itself; not by default, since it makes every request slower.
    """
    connector = aiohttp.TCPConnector(
        limit=connections,
        resolver=resolver,
        ttl_dns_cache=60,
        force_close=not reuse,
        socket_factory=None if settings.allow_private_hosts else _guarded_socket,
    )
    return session_over(connector, settings, websockets=websockets)


def session_over(
    connector: aiohttp.BaseConnector, settings: Settings, *, websockets: bool = False
) -> aiohttp.ClientSession:
    """The session over any connector. The connector must check addresses, unless private hosts are allowed."""
    return aiohttp.ClientSession(
        connector=connector,
        headers={"User-Agent": settings.user_agent, "Accept-Encoding": "identity"},
        auto_decompress=False,  # a few compressed bytes may expand to gigabytes
        trace_configs=[_redirect_guard(allow_private=settings.allow_private_hosts)] if websockets else [],
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=settings.tuning.fetch_connect_seconds, sock_read=settings.tuning.fetch_idle_seconds
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


def to_http_error(err: Exception, url: str) -> Exception:
    """Convert an error of aiohttp or the socket to HostRefused or Unreachable."""
    causes: list[BaseException | None] = [err, getattr(err, "os_error", None), err.__cause__]
    for cause in causes:
        nested = getattr(cause, "exceptions", ())
        if any(isinstance(one, _RefusedAddress) for one in (cause, *nested)):
            return HostRefused(f"{urlsplit(url).hostname} has a private address")
        if isinstance(cause, socket.gaierror) and cause.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return NoSuchHost(f"{urlsplit(url).hostname} has no address")
    if isinstance(err, aiohttp.NonHttpUrlClientError | aiohttp.InvalidURL):
        return HostRefused(printable(f"{url[:200]}: {err}"))
    what = "no answer in time" if isinstance(err, TimeoutError) else (str(err) or type(err).__name__)
    return Unreachable(printable(f"{urlsplit(url).hostname}: {what}"))


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    params: Mapping[str, str] | None = None,
    *,
    allow_private: bool,
    limit: int = SMALL_JSON.size,
    total_seconds: float = TOTAL_SECONDS,
) -> HttpAnswer:
    """GET a URL and read at most `limit` bytes. Returns any status. Raises HostRefused, Unreachable.

    Redirect targets are checked like the first URL. A body that is too long is cut if the status is an error.
    """
    timeout = aiohttp.ClientTimeout(sock_connect=10.0, sock_read=min(IDLE_SECONDS, total_seconds))
    here = url
    try:
        async with asyncio.timeout(total_seconds):
            for _ in range(MAX_REDIRECTS + 1):
                check_url(here, allow_private=allow_private)
                async with session.get(here, params=params, timeout=timeout, allow_redirects=False) as response:
                    if response.status not in REDIRECTS or "Location" not in response.headers:
                        return HttpAnswer(response.status, response.headers, await _body(response, limit))
                    here, params = redirected(str(response.url), response.headers["Location"]), None
            raise Unreachable(f"{urlsplit(url).hostname}: more than {MAX_REDIRECTS} redirects")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, asyncio.IncompleteReadError) as err:
        raise to_http_error(err, url) from err


async def _body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    failed = response.status >= 400
    most = min(limit, SMALL_JSON.size) if failed else limit
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > most:
            if failed:
                return bytes(body[:most])
            raise BodyTooLarge(f"{response.url.host}: answer of more than {limit} bytes")
    return bytes(body)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds from Retry-After (seconds or date), else from RateLimit-Reset, at most a day; None if neither can be parsed.

    `now`: Unix time. RateLimit-Reset is in seconds or, as servers of this network send it, a Unix time.
    """
    value = headers.get("Retry-After", "")
    seconds = _seconds(value)
    if seconds is None:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError, OSError):  # an untrusted date: any year, or invalid
            seconds = _seconds(headers.get("RateLimit-Reset", ""))
            seconds = None if seconds is None else seconds - now if seconds > 1e9 else seconds
    return None if seconds is None else min(max(0.0, seconds), LONGEST_WAIT_SECONDS)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return None if isnan(seconds) else seconds


def _port_allowed(port: int) -> bool:
    return port in _WELL_KNOWN_PORTS or port >= _FIRST_FREE_PORT


def _redirect_guard(*, allow_private: bool) -> aiohttp.TraceConfig:
    """Checks redirects that aiohttp follows itself, which it does for websockets."""

    async def check(_session: object, _context: object, hop: aiohttp.TraceRequestRedirectParams) -> None:
        location = hop.response.headers.get("Location", "")
        check_url(redirected(str(hop.url), location), allow_private=allow_private)

    guard = aiohttp.TraceConfig()
    guard.on_request_redirect.append(check)
    return guard


def _guarded_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, place = info
    if not address_allowed(str(place[0])) or not _port_allowed(int(place[1])):
        raise _RefusedAddress(f"{place[0]}:{place[1]} is not a public address")
    return socket.socket(family=family, type=kind, proto=protocol)
