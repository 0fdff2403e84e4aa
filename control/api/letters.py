"""Handlers of dead letters."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from control.api import models
from control.api.context import Context
from control.api.errors import Conflict, Invalid, NotFound
from control.api.pages import cut, read_cursor
from control.dead_letters import DeadLetters, Place
from schemas.sql import queries

SQL = queries("api")
FIND = queries("dead_letter")["find"]


def letters(context: Context, asked: models.LetterPage, _body: None) -> models.Letters:
    """A page of dead letters, the newest first."""
    time, part, offset = _after(asked.cursor)
    values = {"state": asked.state, "reason": asked.reason, "time": time, "part": part, "offset": offset}
    rows = context.rows(SQL["letters"], {**values, "limit": asked.limit + 1})
    page, cursor = cut(rows, asked.limit, "noticed_at", "part", "log_offset")
    return models.Letters(items=[models.Letter.model_validate(_named(row)) for row in page], cursor=cursor)


def letter(context: Context, asked: models.LetterPlace, _body: None) -> models.WholeLetter:
    """A dead letter with its payload."""
    _row(context, asked)
    with _letters(context) as found:
        return models.WholeLetter.model_validate(_named(found.show(_place(asked.id))))


def retry(context: Context, asked: models.LetterPlace, _body: None) -> models.LetterSettled:
    """Run the code of today over the payload. It stays open where that does not help, and says why."""
    _open(context, asked)
    with _letters(context) as found:
        retried = found.retry(_place(asked.id))
    return models.LetterSettled.model_validate({"id": asked.id, "state": retried.state, "why": retried.why})


def dismiss(context: Context, asked: models.LetterPlace, _body: None) -> models.LetterSettled:
    """Put it aside: looked at, and nothing to be done."""
    _open(context, asked)
    with _letters(context) as found:
        found.dismiss(_place(asked.id))
    return models.LetterSettled(id=asked.id, state="dismissed", why="")


@contextmanager
def _letters(context: Context) -> Iterator[DeadLetters]:
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
        raise Invalid("cursor: not one of this list") from err
    return key[0], key[1], key[2]


def _open(context: Context, asked: models.LetterPlace) -> None:
    state = _row(context, asked)["state"]
    if state != "open":
        raise Conflict(f"dead letter {asked.id} is {state} already", "only open ones are retried or dismissed")


def _row(context: Context, asked: models.LetterPlace) -> dict[str, Any]:
    part, offset = _place(asked.id)
    rows = context.rows(FIND, {"part": part, "offset": offset})
    if not rows:
        raise NotFound(f"there is no dead letter {asked.id}", "GET /api/dead-letters?state=all lists them")
    return rows[0]


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "id": f"{row['part']}:{row['log_offset']}"}


def _place(text: str) -> Place:
    part, _, offset = text.partition(":")
    return int(part), int(offset)
