"""Row versions that the tables do not keep: refused edits, and records that exist only within a transaction."""

from collections.abc import Mapping
from typing import Any

import psycopg

from appview.changes import Changes
from appview.projection.project import KNOWN, Source, project
from appview.sql import queries
from connectors.postgres.pg_array import array
from flows.index.projection import Key
from protocol.encoding.timestamps import canonical
from steps.gate.batch import ORDERED, Row, WriteBatch

SQL = queries("writer")
POST = "app.bsky.feed.post"

Db = psycopg.Connection[Any]


def transient(writes: WriteBatch) -> list[tuple[Row, int | None]]:
    """Follows, list items and gates that a later operation of the same batch replaced or deleted, with its time."""
    return [
        (row, gone)
        for (_, collection, _), rows in writes.replaced.items()
        if collection in ORDERED and collection != POST
        for row, gone in rows
    ]


def note_changed(db: Db, changes: Changes, rows: Mapping[Key, Row], writes: WriteBatch) -> None:
    """Note the staged rows whose path or CID is new. Of an invalid edit, keep the previous version."""
    kept: dict[Key, tuple[str, int | None]] = {}
    changed = {(did, collection, rkey): rest for did, collection, rkey, *rest in db.execute(SQL["changed"]).fetchall()}
    for key in (key for key in rows if key in changed):  # in the order of their operations
        existed, came = changed[key]
        row, was_valid = rows[key], existed and key not in writes.deleted
        earlier = _valid_before(row, writes) if key in writes.replaced else None
        why = refused(row) if key[1] in KNOWN and (was_valid or earlier) else None
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
        else:  # the previous version was invalid too
            changes.put(rows[key], existed=True, came=came)


def _valid_before(row: Row, writes: WriteBatch) -> Row | None:
    """The last valid row that an edit of this batch replaced, unless the record was deleted since."""
    key = row[:3]
    if key in writes.deleted:
        return None
    return next((former for former, _ in reversed(writes.replaced[key]) if refused(former) is None), None)


def refused(row: Row) -> str | None:
    """Why the AppView refuses this record; None if it is valid, or has no JSON to validate."""
    did, collection, rkey, cid, _, _, body, *_, indexed_at, _ = row
    if body is None:
        return None
    made = project(Source(did, collection, rkey, cid, body, canonical(indexed_at) or ""))
    return None if made is None else made.invalid


def _text(body: bytes | None) -> str | None:
    return None if body is None else body.decode()
