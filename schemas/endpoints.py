"""Validation of URLs and addresses in settings."""

import ipaddress
import re

BROKER = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s/:@]+)(:\d{1,5})?")


def is_postgresql(value: str) -> bool:
    """Whether libpq accepts this text as a connection string (URL or key=value). True for ''."""
    if not value:
        return True
    from psycopg import ProgrammingError  # noqa: PLC0415 - only if a database is set
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - as above

    try:
        conninfo_to_dict(value)
    except ProgrammingError:
        return False
    return True


def is_address(value: str) -> bool:
    """Whether this is an IPv4 address."""
    try:
        ipaddress.IPv4Address(value)
    except ValueError:
        return False
    return True


def service_url(value: str) -> str:
    """The URL without a trailing slash, ws(s) replaced by http(s). Raises ValueError."""
    url = value.rstrip("/")
    scheme = url.partition("://")[0]
    if scheme in ("ws", "wss"):
        url = url.replace("ws", "http", 1)
    elif scheme not in ("http", "https"):
        raise ValueError(f"{value!r} is not a URL; write it as https://HOST")
    return url
