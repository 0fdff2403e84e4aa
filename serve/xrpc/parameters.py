"""The parameters of a query. Each function raises XrpcError(InvalidRequest) with one line that names the parameter."""

from collections.abc import Callable

from multidict import MultiMapping

from protocol.syntax import is_did, is_handle, is_nsid, is_rkey, is_tid
from serve.guard import XrpcError

MAX_TEXT = 8192

Query = MultiMapping[str]


def did_of(query: Query) -> str:
    """The parameter `did`."""
    return _checked(query, "did", is_did, "a DID")


def handle_of(query: Query) -> str:
    """The parameter `handle`, in lower case."""
    return _checked(query, "handle", is_handle, "a handle").lower()


def account_of(query: Query, name: str) -> str:
    """A DID, or a handle in lower case."""
    text = _checked(query, name, lambda text: is_did(text) or is_handle(text), "a DID or a handle")
    return text if is_did(text) else text.lower()


def collection_of(query: Query) -> str:
    """The parameter `collection`."""
    return _checked(query, "collection", is_nsid, "an NSID")


def rkey_of(query: Query) -> str:
    """The parameter `rkey`."""
    return _checked(query, "rkey", is_rkey, "a record key")


def since_of(query: Query) -> str | None:
    """The parameter `since`, a rev, if there is one."""
    return _checked(query, "since", is_tid, "a TID") if "since" in query else None


def limit_of(query: Query, default: int, most: int) -> int:
    """The parameter `limit`, from 1 to `most`."""
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise XrpcError("InvalidRequest", f"limit must be a number from 1 to {most}")
    return int(text)


def flag_of(query: Query, name: str) -> bool:
    """A boolean parameter; false if it is absent."""
    return _checked(query, name, ("true", "false").__contains__, "true or false") == "true" if name in query else False


def texts_of(query: Query, name: str, most: int) -> list[str]:
    """A parameter that may be repeated `most` times; without PostgreSQL's forbidden character."""
    found = [*query.getall(name, ()), *query.getall(f"{name}[]", ())]
    if len(found) > most or any(not text or len(text) > MAX_TEXT or "\0" in text for text in found):
        raise XrpcError("InvalidRequest", f"{name} may be given {most} times, each with 1 to {MAX_TEXT} characters")
    return found


def _checked(query: Query, name: str, valid: Callable[[str], bool], what: str) -> str:
    text = query.get(name, "")
    if not valid(text):
        raise XrpcError("InvalidRequest", f"{name} must be {what}" if text else f"{name} is missing; it must be {what}")
    return text
