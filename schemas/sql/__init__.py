"""SQL lives in files: migrations in `migrations/`, named queries in `*.sql` beside this module.

`queries("repo")` reads `repo.sql` into `{name: statement}`; a block starts with `-- name: NAME` and may go on with
comments. Source of the idea: procrastinate's queries file.
"""

from functools import cache
from importlib.resources import files


@cache
def queries(file: str) -> dict[str, str]:
    """Named statements of `schemas/sql/<file>.sql`. Raises FileNotFoundError for an unknown file."""
    text = (files(__package__) / f"{file}.sql").read_text("utf-8")
    found: dict[str, str] = {}
    for block in text.split("-- name:")[1:]:
        name, _, body = block.partition("\n")
        found[name.strip()] = body.strip()
    return found
