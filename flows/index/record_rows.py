"""Writes of `sluice.record_row`: COPY for the first rows of a repo, an upsert through a temporary table for others, bulk deletes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from psycopg import errors
from psycopg.types.string import BytesBinaryDumper

from connectors.postgres.pg_array import array
from connectors.postgres.stored_forms import cid_column, rev_column, time_column
from connectors.runtime import metrics
from flows.index.collection_ids import CollectionIds
from flows.index.projection import Connection, Key, ProjectedChanges
from protocol.encoding.unpadded_base64 import from_base64
from schemas.sql import queries
from steps.gate.batch import Row, WriteBatch

SQL = queries("index")
NAMED = {name: SQL["deleted_names"].replace(b"DELETE", SQL[name]) for name in ("drop_rows", "delete_records")}
"""The deletes as statements that return what they deleted, with names."""

COPY_TYPES = ["int8", "int8", "int8", "int4", "int4", "int4", "text", "bytea", "bytea", "bytea", "text"]
"""Of a `StoredRow` in binary COPY. The binary form of timestamptz is an int8, that of json its text."""

StoredRow = tuple[int, int, int | None, int, int, int, str, bytes, bytes | None, bytes | None, str | None]
"""rev, indexed_at, came, repo, collection, attempt, rkey, cid, json, raw, reason: the columns of `sluice.record_row`."""


@dataclass(slots=True)
class RecordRows:
    """The record writes of one transaction, reported to the projection where there is one."""

    db: Connection
    collections: CollectionIds
    changes: ProjectedChanges | None = None
    staged: bool = False  # rows of an earlier write batch are in the temporary table
    repos: dict[str, int] = field(default_factory=dict)  # ids of the locked repos
    first: dict[str, Counter[int]] = field(default_factory=dict)
    """Repos all of whose rows were copied here, so that nothing is left to count: DID → attempt → rows."""

    def write(self, writes: WriteBatch) -> None:
        """Delete the rows of former attempts; then delete, insert and update."""
        for did in chain(writes.rows, (did for did, _ in writes.drop_rows)):
            self.first.pop(did, None)
        if writes.drop_rows:
            dids, befores = zip(*writes.drop_rows, strict=True)
            self._delete("drop_rows", {"repos": [self.repos[did] for did in dids], "befores": list(befores)}, {})
        copied, upserted, deleted = _by_path(writes)
        if deleted:
            ids = self.collections.of(collection for _, collection, _ in deleted)
            values = {
                "repos": array([self.repos[did] for did, _, _ in deleted]),
                "collections": array([ids[collection] for _, collection, _ in deleted]),
                "rkeys": array([rkey for _, _, rkey in deleted]),
            }
            self._delete("delete_records", values, writes.deleted)
        renewed = self._renew_ids({row[0] for row in copied}) if copied else ()
        fits = not copied or self._copy(copied)
        if fits:
            self.first |= {did: Counter(row[5] for row in writes.rows[did].values() if row) for did in renewed}
        else:
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

    def _renew_ids(self, dids: set[str]) -> Iterable[str]:
        """Give those repos that have no rows new ids; returns these DIDs."""
        renewed: dict[str, int] = dict(self.db.execute(SQL["renew_ids"], {"dids": array(list(dids))}).fetchall())
        self.repos |= renewed
        return renewed

    def _copy(self, rows: Sequence[Row]) -> bool:
        """COPY straight into the table; False, with nothing written, if one of the rows exists already."""
        try:
            with self.db.transaction():
                copy_rows(self.db, "copy_records", self._stored(rows))
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
            self.changes.deleted(self.db.execute(NAMED[statement], values).fetchall(), when)

    def _upsert(self, rows: Sequence[Row], writes: WriteBatch) -> None:
        if self.staged:
            self.db.execute("truncate stage_record")
        copy_rows(self.db, "copy_stage", self._stored(rows))
        if self.changes is not None:
            self.changes.staged(rows, writes)
        self.db.execute(SQL["upsert_stage"])
        self.staged = True

    def _stored(self, rows: Sequence[Row]) -> Iterator[StoredRow]:
        return stored(rows, self.repos, self.collections.of(row[1] for row in rows))


def copy_rows(db: Connection, statement: str, rows: Iterable[StoredRow]) -> None:
    """Binary COPY of rows into the table of a `copy_…` statement. Raises psycopg.Error."""
    with db.cursor() as cursor:
        cursor.adapters.register_dumper(bytes, BytesBinaryDumper)  # of C; that of DB-API, which psycopg prefers, is not
        with cursor.copy(SQL[statement]) as copy:
            copy.set_types(COPY_TYPES)
            for row in rows:
                copy.write_row(row)


def stored(rows: Iterable[Row], repos: Mapping[str, int], collections: Mapping[str, int]) -> Iterator[StoredRow]:
    """Records in the form of the table. Raises ValueError for a rev that is not a TID.

    In the order of the key: PostgreSQL then leaves full pages behind in the index (63 → 45 bytes a record).
    """
    for repo, collection, rkey, row in sorted([(repos[row[0]], collections[row[1]], row[2], row) for row in rows]):
        _, _, _, cid, rev, attempt, json, raw, reason, time, came = row
        numbers = (rev_column(rev), time_column(time), came, repo, collection, attempt)
        yield (*numbers, rkey, cid_column(cid), json, None if raw is None else unbase64(raw), reason)


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
