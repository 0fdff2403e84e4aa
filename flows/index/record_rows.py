"""Writes of `sluice.record`: COPY for the first rows of a repo, an upsert through a temporary table for others, bulk deletes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from psycopg import errors

from connectors.postgres.pg_array import array
from connectors.runtime import metrics
from flows.index.projection import Connection, Key, ProjectedChanges
from protocol.encoding.unpadded_base64 import from_base64
from schemas.sql import queries
from steps.gate.batch import Row, WriteBatch

SQL = queries("index")
COPY_TYPES = ["text", "text", "text", "text", "text", "int4", "bytea", "bytea", "text", "text", "int8"]
"""Of a `Row` in binary COPY. The binary form of json is its text."""

RETURNING = b" returning r.did, r.collection, r.rkey, r.came"


@dataclass(slots=True)
class RecordRows:
    """The record writes of one transaction, reported to the projection where there is one."""

    db: Connection
    changes: ProjectedChanges | None = None
    staged: bool = False  # rows of an earlier write batch are in the temporary table

    def write(self, writes: WriteBatch) -> None:
        """Delete the rows of former attempts; then delete, insert and update."""
        if writes.drop_rows:
            attempts = sorted(writes.drop_rows, key=lambda drop: drop[0])
            values = {"dids": [did for did, _ in attempts], "befores": [before for _, before in attempts]}
            self._delete("drop_rows", values, {})
        copied, upserted, deleted = _by_path(writes)
        if deleted:
            dids, collections, rkeys = (array(column) for column in zip(*deleted, strict=True))
            self._delete("delete_records", {"dids": dids, "collections": collections, "rkeys": rkeys}, writes.deleted)
        fits = not copied or self._copy(copied)
        if not fits:
            upserted += copied
        if upserted:
            self._upsert(upserted, writes)
        if self.changes is not None:
            self.changes.written(writes)
        for path, count in (("copy", len(copied)), ("upsert", len(upserted)), ("delete", len(deleted))):
            metrics.RECORDS_WRITTEN.labels(path).inc(count)
        kinds = (row[1] for row in chain(copied if fits else (), upserted, deleted))
        for kind, number in Counter(kinds).items():
            if kind in metrics.COLLECTIONS:
                metrics.COLLECTION_RECORDS.labels(kind).inc(number)

    def _copy(self, rows: Sequence[Row]) -> bool:
        """COPY straight into the table; False, with nothing written, if one of the rows exists already."""
        try:
            with self.db.transaction():
                copy_rows(self.db, "copy_records", rows)
        except errors.UniqueViolation:
            metrics.COPY_FALLBACKS.inc()
            return False
        if self.changes is not None:
            self.changes.copied(rows)
        return True

    def _delete(self, statement: str, values: dict[str, Any], when: Mapping[Key, int | None]) -> None:
        if self.changes is None:
            self.db.execute(SQL[statement], values)
        else:
            self.changes.deleted(self.db.execute(SQL[statement] + RETURNING, values).fetchall(), when)

    def _upsert(self, rows: Sequence[Row], writes: WriteBatch) -> None:
        if self.staged:
            self.db.execute("truncate stage_record")
        copy_rows(self.db, "copy_stage", rows)
        if self.changes is not None:
            self.changes.staged(rows, writes)
        self.db.execute(SQL["upsert_stage"])
        self.staged = True


def copy_rows(db: Connection, statement: str, rows: Sequence[Row]) -> None:
    """Binary COPY of rows into the table of a `copy_…` statement. Raises psycopg.Error."""
    with db.cursor() as cursor, cursor.copy(SQL[statement]) as copy:
        copy.set_types(COPY_TYPES)
        for row in rows:
            copy.write_row(row if row[7] is None else (*row[:7], unbase64(row[7]), *row[8:]))


def unbase64(text: str | None) -> bytes | None:
    """Unpadded base64 → bytes; None → None."""
    return None if text is None else from_base64(text)


def _by_path(writes: WriteBatch) -> tuple[list[Row], list[Row], list[Key]]:
    copied: list[Row] = []
    upserted: list[Row] = []
    deleted: list[Key] = []
    for did, rows in writes.rows.items():
        target = copied if did in writes.fresh else upserted
        for (collection, rkey), row in rows.items():
            if row is None:
                deleted.append((did, collection, rkey))
            else:
                target.append(row)
    return copied, upserted, deleted
