"""Records of `sluice.record` → rows of the AppView's tables, a page at a time."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from appview import statements as tables
from appview.projection.project import project
from appview.projection.values import Projected, Row, Source
from appview.sql import queries
from connectors.postgres.pg_array import array
from flows.index.projection import Key
from protocol.encoding.timestamps import canonical
from steps.gate.batch import Row as RecordRow

SQL = queries("writer")
MAY_BE_LONG = 1000  # bytes; a shorter body cannot have a reference too long for an index
EPOCH = "1970-01-01T00:00:00.000Z"
POST = "app.bsky.feed.post"
GATES = ("thread_gate", "post_gate")
DERIVED = "quote"  # exists only while both posts do: left to appview/reconcile.py

Db = psycopg.Connection[Any]


@dataclass(slots=True)
class RecordPage:
    """Records that are projected together."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    made: list[tuple[Source, Projected]] = field(default_factory=list)
    came: dict[str, int | None] = field(default_factory=dict)  # of gates
    invalid: list[tuple[str, str, str, str]] = field(default_factory=list)


def feed_items(db: Db, keys: list[Key]) -> list[Row]:
    """The feed items of these records."""
    page = RecordPage()
    for record in records_at(db, keys):
        project_row(record, page)
    return [row for _, made in page.made for row in made.rows.get("feed_item", ())]


def records_at(db: Db, keys: list[Key]) -> list[RecordRow]:
    """The records at these paths, as the AppView shows them."""
    return db.execute(SQL["records"], paths_of(keys)).fetchall() if keys else []


def project_row(record: RecordRow, page: RecordPage) -> None:
    """Add the rows of a record to the page, or the reason why it is invalid."""
    did, collection, rkey, cid, _, _, body, _, _, indexed_at, came = record
    if body is None:
        return
    source = Source(did, collection, rkey, cid, body, canonical(indexed_at) or EPOCH)
    made = project(source)
    if made is None:
        return
    if made.invalid is not None:
        page.invalid.append((did, collection, rkey, made.invalid))
        return
    if len(body) > MAY_BE_LONG and tables.too_long(made.rows):
        page.invalid.append((did, collection, rkey, ": has a reference that is too long for an index"))
        return
    page.made.append((source, made))
    for table, rows in made.rows.items():
        if table in GATES:
            page.came[made.uri] = came
        if table != DERIVED and (table != "feed_item" or collection == POST):
            page.rows.setdefault(table, []).extend(rows)


def key_of(uri: str) -> Key:
    """The path that an AT-URI names."""
    _, _, did, collection, rkey = uri.split("/", 4)
    return did, collection, rkey


def paths_of(keys: Iterable[Key]) -> dict[str, str]:
    """Paths as array parameters of a statement."""
    dids, collections, rkeys = (array(column) for column in zip(*keys, strict=True))
    return {"dids": dids, "collections": collections, "rkeys": rkeys}
