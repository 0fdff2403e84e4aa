"""What settings say of where things are: URLs of services and databases, addresses of brokers and servers."""

import ipaddress
import re

BROKER = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s/:@]+)(:\d{1,5})?")


def is_postgresql(value: str) -> bool:
    """Whether libpq takes this text for a connection: a URL, or words of the form key=value."""
    if not value:
        return True
    from psycopg import ProgrammingError  # noqa: PLC0415 - only where a database is named
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
    """The http(s) URL of a service. Raises ValueError."""
    url = value.rstrip("/")
    scheme = url.partition("://")[0]
    if scheme in ("ws", "wss"):
        url = url.replace("ws", "http", 1)
    elif scheme not in ("http", "https"):
        raise ValueError(f"{value!r} is not a URL; write it as https://HOST")
    return url
