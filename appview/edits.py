"""What the AppView has to know of rows that do not stay: edits that it refuses, and what came and went within a transaction."""

from collections.abc import Mapping
from typing import Any

import psycopg

from appview.changes import Changes, Key
from appview.projection.project import KNOWN, Source, project
from appview.sql import queries
from connectors.postgres.pg_array import array
from protocol.encoding.timestamps import canonical
from steps.gate.batch import ORDERED, Row, WriteBatch

SQL = queries("writer")
POST = "app.bsky.feed.post"

Db = psycopg.Connection[Any]


def passed(writes: WriteBatch) -> list[tuple[Row, int | None]]:
    """Follows, list items and gates that a later operation of the same round replaced or deleted, and when it did."""
    return [
        (row, gone)
        for (_, collection, _), rows in writes.replaced.items()
        if collection in ORDERED and collection != POST
        for row, gone in rows
    ]


def note_changed(db: Db, changes: Changes, rows: Mapping[Key, Row], writes: WriteBatch) -> None:
    """Note staged rows that differ from the table by path and CID; of an edit that is not valid, what was there before is kept."""
    kept: dict[Key, tuple[str, int | None]] = {}
    for did, collection, rkey, existed, came in db.execute(SQL["changed"]).fetchall():
        key = did, collection, rkey
        row, was_valid = rows[key], existed and key not in writes.deleted
        earlier = _valid_before(row, writes) if key in writes.replaced else None
        why = refused(row) if collection in KNOWN and (was_valid or earlier) else None
        if why is None:
            changes.put(row, existed=existed, came=came)
        elif earlier is not None:
            changes.put(earlier, existed=existed, came=came)
            changes.keep(key, why, earlier[10])
            values = dict(zip(("did", "collection", "rkey", "cid"), earlier[:4], strict=True))
            db.execute(SQL["keep_this"], {**values, "reason": why, "json": _text(earlier[6]), "at": earlier[9]})
        else:
            kept[key] = why, came
    if kept:
        _keep(db, changes, kept, rows)


def _keep(db: Db, changes: Changes, kept: Mapping[Key, tuple[str, int | None]], rows: Mapping[Key, Row]) -> None:
    dids, collections, rkeys = (array(column) for column in zip(*kept, strict=True))
    paths = {"dids": dids, "collections": collections, "rkeys": rkeys}
    db.execute(SQL["keep"], {**paths, "reasons": array([why for why, _ in kept.values()])})
    shown = set(db.execute(SQL["kept"], paths).fetchall())
    for key, (why, came) in kept.items():
        if key in shown:
            changes.keep(key, why, came)
        else:  # what was there was not valid either
            changes.put(rows[key], existed=True, came=came)


def _valid_before(row: Row, writes: WriteBatch) -> Row | None:
    """The last valid row that an edit of this round replaced, unless the record was deleted in between."""
    key = row[:3]
    if key in writes.deleted:
        return None
    return next((former for former, _ in reversed(writes.replaced[key]) if refused(former) is None), None)


def refused(row: Row) -> str | None:
    """Why the AppView does not take it. A row without JSON is nothing that it could judge."""
    did, collection, rkey, cid, _, _, body, *_, indexed_at, _ = row
    if body is None:
        return None
    made = project(Source(did, collection, rkey, cid, body, canonical(indexed_at) or ""))
    return None if made is None else made.invalid


def _text(body: bytes | None) -> str | None:
    return None if body is None else body.decode()
