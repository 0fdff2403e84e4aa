"""Patterns of operators' input, and error messages for input that does not match: `mistake(error) -> (where, what)`.

They are part of the HTTP API's description, and looser than `protocol/syntax.py`, which validates data of the network.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from schemas.errors import OperatorError

if TYPE_CHECKING:
    from pydantic import ValidationError

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,62})"
NSID = rf"^{_LABEL}(?:\.{_LABEL}){{2,}}$"
PATTERN = rf"^(?:\*|{_LABEL}(?:\.{_LABEL}){{0,}}\.\*|{_LABEL}(?:\.{_LABEL}){{2,}})$"
DID = r"^did:[a-z0-9]+:[A-Za-z0-9._:%-]+$"
PLACE = r"^\d{1,9}:\d{1,18}$"

WRITE = {
    NSID: "write an NSID, such as app.bsky.actor.profile",
    PATTERN: "write an NSID, NSID.* or *",
    DID: "write a DID, such as did:plc:… or did:web:HOST",
    PLACE: "write PARTITION:OFFSET",
}


def mistake(error: "ValidationError") -> tuple[tuple[str, ...], str]:
    """`first_mistake` of a model's errors."""
    return first_mistake(error.errors(include_url=False, include_input=False))


def first_mistake(errors: Sequence[Any]) -> tuple[tuple[str, ...], str]:
    """The first of pydantic's errors: location (field, index, …; empty: the whole) and message, without a regex."""
    first = errors[0]
    where = tuple(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return (), "the body is not JSON"
    if first["type"] == "string_pattern_mismatch":
        return where, WRITE.get(first["ctx"]["pattern"], "has characters that it cannot have")
    return where, first["msg"].removeprefix("Value error, ")


def place_of(text: str) -> tuple[int, int] | None:
    """The numbers of PARTITION:OFFSET; None for another text."""
    part, _, offset = text.partition(":")
    return (int(part), int(offset)) if part.isdecimal() and offset.isdecimal() else None


def time_of(option: str, text: str, other: str = "") -> datetime:
    """The time of an option, ISO 8601; UTC if it has no zone. `other`: what it accepts besides, for the OperatorError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as err:
        raise OperatorError(f"{option} {text}: write {other}a time as 2026-01-31T12:00:00Z") from err
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
