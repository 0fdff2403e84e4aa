"""SQL lives in files: migrations in `migrations/`, named statements in `*.sql` beside this module.

A statement starts with `-- name: NAME`; comments may follow. Source of the idea: procrastinate's queries file.
"""

from functools import cache
from importlib.resources import files

Statement = bytes
"""SQL text as psycopg takes it."""


@cache
def queries(file: str, package: str = __name__) -> dict[str, Statement]:
    """Named statements of `<file>.sql` in a package. Raises FileNotFoundError for an unknown file."""
    text = (files(package) / f"{file}.sql").read_text("utf-8")
    found: dict[str, Statement] = {}
    for block in text.split("-- name:")[1:]:
        name, _, body = block.partition("\n")
        found[name.strip()] = body.strip().encode()
    return found
