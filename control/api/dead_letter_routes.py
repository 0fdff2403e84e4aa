"""Routes of dead letters."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path, Query

from control.api import models
from control.api.context import Context
from control.api.errors import Conflict, Invalid, NotFound
from control.api.paging import cut, read_cursor
from control.api.router import Ctx, Cursor, Limit, Router, documented
from control.dead_letters import DeadLetters, Place
from schemas.patterns import PLACE
from schemas.sql import queries

SQL = queries("api")
FIND = queries("dead_letter")["find"]
ROUTER = Router()

DeadLetterId = Annotated[str, Path(pattern=PLACE, description="PARTITION:OFFSET")]
DeadLetterReason = Annotated[str | None, Query(max_length=100, pattern=r"^[\x20-\x7e]*$")]


@ROUTER.get("")
def list_dead_letters(
    context: Ctx,
    state: Literal["open", "retried", "dismissed", "all"] = "open",
    reason: DeadLetterReason = None,
    limit: Limit = 100,
    cursor: Cursor = "",
) -> models.DeadLetterPage:
    """Dead letters, the newest first."""
    time, part, offset = _after(cursor)
    values = {"state": state, "reason": reason, "time": time, "part": part, "offset": offset, "limit": limit + 1}
    page, following = cut(context.rows(SQL["dead_letters"], values), limit, "noticed_at", "part", "log_offset")
    return models.DeadLetterPage.model_validate({"items": [_named(row) for row in page], "cursor": following})


@ROUTER.get("/{id}", responses=documented(404))
def get_dead_letter(context: Ctx, id: DeadLetterId) -> models.DeadLetterDetail:
    """A dead letter with its payload."""
    _row(context, id)
    with _dead_letters(context) as found:
        return models.DeadLetterDetail.model_validate(_named(found.show(_place(id))))


@ROUTER.post("/{id}/retry", responses=documented(404, 409))
def retry_dead_letter(context: Ctx, id: DeadLetterId) -> models.DeadLetterResult:
    """Process the payload again with this release. A dead letter that fails again stays open; `why` has the error."""
    _require_open(context, id)
    with _dead_letters(context) as found:
        retried = found.retry(_place(id))
    return models.DeadLetterResult.model_validate({"id": id, "state": retried.state, "why": retried.why})


@ROUTER.post("/{id}/dismiss", responses=documented(404, 409))
def dismiss_dead_letter(context: Ctx, id: DeadLetterId) -> models.DeadLetterResult:
    """Close a dead letter without processing it."""
    _require_open(context, id)
    with _dead_letters(context) as found:
        found.dismiss(_place(id))
    return models.DeadLetterResult(id=id, state="dismissed", why="")


@contextmanager
def _dead_letters(context: Context) -> Iterator[DeadLetters]:
    found = DeadLetters(context.settings)
    try:
        yield found
    finally:
        found.close()


def _after(cursor: str) -> tuple[str | None, int, int]:
    key = read_cursor(cursor, str, int, int)
    if key is None:
        return None, 0, 0
    try:
        datetime.fromisoformat(key[0])
    except ValueError as err:
        raise Invalid("cursor: not from this list") from err
    return key[0], key[1], key[2]


def _require_open(context: Context, name: str) -> None:
    state = _row(context, name)["state"]
    if state != "open":
        raise Conflict(f"dead letter {name} is {state} already", "only open ones are retried or dismissed")


def _row(context: Context, name: str) -> dict[str, Any]:
    part, offset = _place(name)
    rows = context.rows(FIND, {"part": part, "offset": offset})
    if not rows:
        raise NotFound(f"there is no dead letter {name}", "GET /api/v1/dead-letters?state=all lists them")
    return rows[0]


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "id": f"{row['part']}:{row['log_offset']}"}


def _place(text: str) -> Place:
    part, _, offset = text.partition(":")
    return int(part), int(offset)
