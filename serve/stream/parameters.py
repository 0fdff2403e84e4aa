"""Parameters of the streams' URLs. Every reader raises XrpcError (400) that names the parameter."""

from collections.abc import Collection, Sequence

from multidict import MultiMapping

from protocol.syntax import is_did, is_nsid
from serve.guard import XrpcError
from steps.gate.filters import Filter

MOST_DIDS = 10_000
MOST_COLLECTIONS = 100
Query = MultiMapping[str]


def invalid(message: str) -> XrpcError:
    """A 400."""
    return XrpcError("InvalidRequest", message)


def number(query: Query, name: str, least: int = 0) -> int | None:
    """A whole number up to 2^63."""
    text = query.get(name)
    if text is None or text == "":
        return None
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 18 or int(text) < least:
        raise invalid(f"{name}: not a whole number from {least} on")
    return int(text)


def truth(query: Query, name: str) -> bool:
    """`true` or `false`."""
    text = query.get(name, "false").lower()
    if text not in ("true", "false", "1", "0", ""):
        raise invalid(f"{name}: neither true nor false")
    return text in ("true", "1")


def dids(name: str, given: Sequence[object]) -> frozenset[str] | None:
    """A set of DIDs; None if there are none."""
    if len(given) > MOST_DIDS:
        raise invalid(f"{name}: more than {MOST_DIDS}")
    found = frozenset(one for one in given if isinstance(one, str) and is_did(one))
    if len(found) != len(set(map(str, given))):
        raise invalid(f"{name}: not a DID")
    return found or None


def collections(name: str, given: Sequence[object]) -> Filter | None:
    """Patterns of collections: an NSID, or `prefix.*`; None if there are none."""
    if len(given) > MOST_COLLECTIONS:
        raise invalid(f"{name}: more than {MOST_COLLECTIONS}")
    for one in given:
        if not isinstance(one, str) or not _is_pattern(one):
            raise invalid(f"{name}: neither an NSID nor PREFIX.*")
    return Filter(collections=tuple(map(str, given))) if given else None


def known(query: Query, names: Collection[str], renamed: dict[str, str]) -> None:
    """Refuse former names of parameters with the names that replace them."""
    for name in query:
        if name in renamed and name not in names:
            raise invalid(f"{name} is a parameter of /subscribe; use {renamed[name]}")


def _is_pattern(text: str) -> bool:
    prefix = text.removesuffix(".*")
    return is_nsid(text) if prefix == text else is_nsid(f"{prefix}.x.x") and len(text) <= 317
