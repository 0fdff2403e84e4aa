"""`sluice export`: the records of the mirror as Parquet files, for analysis outside PostgreSQL.

    DIR/collection=app.bsky.feed.post/day=2026-11-29/000001-0.parquet

Exported are repos in sync of active accounts, in DID order. `day` is the UTC day of `indexed_at`. The folder names hold collection
and day (Hive partitioning, which DuckDB, pandas and Spark read), the files the other columns, see `columns()`. Anybody can invent
collections: those with very long names, and those after the first MAX_COLLECTIONS, share the folder `collection=other`.

Files are written to DIR/.unfinished, and moved in place after about BUFFER_BYTES of records, at the end of a page of repos. Then
DIR/_export.json stores how far the export is. A stopped export resumes there; files that were moved after the last such position
have its number and are written again. A page of repos is read in one statement, so it is consistent in itself; the whole export
is not one snapshot of the database.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg

from connectors.postgres.connection import connect
from connectors.postgres.shards import shard_settings
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as err:  # an extra: the flows do not need it
    raise OperatorError(
        "pyarrow is not installed; install Sluice with its extra: `pip install 'sluice[export]'`"
    ) from err

SQL = queries("export")
FORMAT = 1
STATE, LOCK, UNFINISHED = "_export.json", ".lock", ".unfinished"
BUFFER_BYTES = 64 * 1024 * 1024  # of records as text; in memory they take about three times as much
ROW_BYTES = 200  # of a row beside its record
PAGE_REPOS = 200
MAX_COLLECTIONS = 5000
MAX_NAME = 200  # of a folder; a collection can have 317 characters and a file name 255
OTHER = "other"  # not an NSID, which has two dots
FETCH_ROWS = 50  # at once from the server: one hostile record can have 12 MB as JSON
STATEMENT_SECONDS = 600.0
PROGRESS_SECONDS = 2.0


class ExportRow(NamedTuple):
    """A row of the statement `records`."""

    did: str
    collection: str
    rkey: str
    cid: str
    rev: str
    json: str | None
    raw: bytes | None
    indexed_at: datetime


@dataclass(frozen=True, slots=True)
class ExportScope:
    """What is exported. `collections`: NSIDs and patterns `NSID.*`, none: all. `since`: ISO 8601, of `indexed_at`; empty: all."""

    collections: tuple[str, ...] = ()
    since: str = ""

    def parameters(self) -> dict[str, Any]:
        """Parameters of the statement `records`."""
        exact = [one for one in self.collections if not one.endswith(".*")]
        below = [one[:-1].replace("_", r"\_") + "%" for one in self.collections if one.endswith(".*")]
        return {
            "collections": exact if self.collections else None,
            "prefixes": below if self.collections else None,
            "since": self.since or None,
        }


@dataclass(slots=True)
class ExportProgress:
    """Content of _export.json. `after`: the last exported DID; `number`: of the next files."""

    format: int
    collections: list[str]
    since: str
    began: str
    after: str = ""
    shard: int = 0  # those before it are exported
    number: int = 1
    repos: int = 0
    records: int = 0
    files: int = 0
    bytes: int = 0
    complete: bool = False


def columns(*, other: bool = False) -> pa.Schema:
    """Columns of a file. `record`: the JSON text as signed; null where only the block is kept (`raw`, DAG-CBOR).

    `other`: with the column `nsid`, the collection.
    """
    text = pa.string()
    at = pa.timestamp("us", tz="UTC")
    fields = {"did": text, "rkey": text, "cid": text, "rev": text, "record": text, "raw": pa.binary(), "indexed_at": at}
    if other:
        fields["nsid"] = text
    return pa.schema(list(fields.items()))


def export(settings: Settings, folder: Path, scope: ExportScope, report: Callable[[str], None]) -> ExportProgress:
    """Export to the end, or resume. `report` receives a line every two seconds. Raises OperatorError, psycopg.Error, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        progress = _resumed(folder, scope)
        writer = _Writer(
            folder, progress.number, {path.name.partition("=")[2] for path in folder.glob("collection=*")} - {OTHER}
        )
        for shard in shard_settings(settings)[progress.shard :]:
            with connect(shard.database, "sluice export", statement_seconds=STATEMENT_SECONDS) as db:
                _export_shard(db, folder, scope, writer, progress, report=report)
            progress.shard += 1
            progress.after = ""
        progress.complete = True
        _store(folder, writer, progress)
        return progress


def _export_shard(
    db: psycopg.Connection[Any],
    folder: Path,
    scope: ExportScope,
    writer: "_Writer",
    progress: ExportProgress,
    *,
    report: Callable[[str], None],
) -> None:
    reported = time.monotonic()
    while dids := _page(db, progress.after):
        for row in _records(db, dids, scope):
            writer.add(row)
            progress.records += 1
            if time.monotonic() - reported >= PROGRESS_SECONDS:
                reported = time.monotonic()
                report(f"{progress.records} records of {progress.repos} repos exported")
        progress.repos += len(dids)
        progress.after = dids[-1]
        if writer.due:
            _store(folder, writer, progress)


def _page(db: psycopg.Connection[Any], after: str) -> list[str]:
    rows = db.execute(SQL["repos"], {"after": after, "limit": PAGE_REPOS}).fetchall()
    return [did for (did,) in rows]


def _records(db: psycopg.Connection[Any], dids: Sequence[str], scope: ExportScope) -> Iterator[ExportRow]:
    """Their records, streamed: one repo can have millions."""
    with db.transaction(), db.cursor("records") as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(SQL["records"], {"dids": list(dids), **scope.parameters()})
        yield from map(ExportRow._make, cursor)


def _resumed(folder: Path, scope: ExportScope) -> ExportProgress:
    """Where the export of this folder is, without leftovers of a stopped one. Raises OperatorError."""
    path = folder / STATE
    if not path.exists():
        if any(entry.name != LOCK for entry in folder.iterdir()):
            raise OperatorError(f"{folder} is not empty and holds no export; give an empty folder")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        progress = ExportProgress(FORMAT, list(scope.collections), scope.since, now)
        _save(folder, progress)
        return progress
    try:
        progress = ExportProgress(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as err:
        raise OperatorError(f"{path} is not the state of an export ({err}); give an empty folder") from err
    if progress.format != FORMAT:
        raise OperatorError(f"{path} is of another release; give an empty folder")
    if (tuple(progress.collections), progress.since) != (scope.collections, scope.since):
        raise OperatorError(
            f"{folder} holds an export with other options (--collection {' '.join(progress.collections) or 'not given'}, "
            f"--since {progress.since or 'not given'}); repeat these to resume it, or give an empty folder"
        )
    if progress.complete:
        raise OperatorError(f"{folder} holds a complete export, begun {progress.began}; give an empty folder")
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    for leftover in folder.glob(f"*/*/{progress.number:06d}-*.parquet"):
        leftover.unlink()
    return progress


def _store(folder: Path, writer: "_Writer", progress: ExportProgress) -> None:
    """Move the files in place, then store the progress."""
    files, size = writer.publish()
    progress.files += files
    progress.bytes += size
    progress.number = writer.number
    _save(folder, progress)


def _save(folder: Path, progress: ExportProgress) -> None:
    draft = folder / f"{STATE}.new"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(asdict(progress), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(folder / STATE)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OperatorError if another export writes to the folder."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(f"another `sluice export` writes to {folder}; give another folder") from None
        yield


@dataclass(slots=True)
class _Writer:
    """Rows by collection and day, and the files written since the last `publish`. Holds about BUFFER_BYTES."""

    folder: Path
    number: int
    _known: set[str]  # names of the collections' folders
    due: bool = False  # enough is buffered or written for `publish`
    _rows: dict[tuple[str, str], list[ExportRow]] = field(default_factory=dict)
    _size: int = 0
    _part: int = 0
    _written: list[Path] = field(default_factory=list)  # relative

    def add(self, row: ExportRow) -> None:
        """Add a row; rows of a very large page are written at once, to files that `publish` moves."""
        day = f"{row.indexed_at.astimezone(UTC):%Y-%m-%d}"
        self._rows.setdefault((self._folder_of(row.collection), day), []).append(row)
        self._size += ROW_BYTES + len(row.json or "") + len(row.raw or b"")
        if self._size >= BUFFER_BYTES:
            self._write()
            self.due = True

    def _folder_of(self, collection: str) -> str:
        name = quote(collection, safe="")
        if name not in self._known:
            if len(name) > MAX_NAME or len(self._known) >= MAX_COLLECTIONS:
                return OTHER
            self._known.add(name)
        return name

    def publish(self) -> tuple[int, int]:
        """Move all files in place; their number and bytes."""
        self._write()
        size = 0
        for path in self._written:
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / UNFINISHED / path).rename(place)
            size += place.stat().st_size
        files = len(self._written)
        shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
        self._written, self._part, self.due, self.number = [], 0, False, self.number + 1
        return files, size

    def _write(self) -> None:
        for (collection, day), rows in self._rows.items():
            path = Path(f"collection={collection}", f"day={day}", f"{self.number:06d}-{self._part}.parquet")
            draft = self.folder / UNFINISHED / path
            draft.parent.mkdir(parents=True, exist_ok=True)
            did, nsid, *others = map(list, zip(*rows, strict=True))
            other = collection == OTHER
            table = pa.table([did, *others, *([nsid] if other else [])], schema=columns(other=other))
            parquet.write_table(table, draft, compression="zstd")
            self._written.append(path)
        self._part += bool(self._rows)
        self._rows, self._size = {}, 0
