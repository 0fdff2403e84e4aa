"""Checks the rows and commits of some DIDs: for the worker processes of `sluice audit`, and for one repo in the API.

Each chunk is one repeatable-read, read-only transaction, so rows and repo row agree while the index writes. Rows are streamed, so a
repo of any size needs little memory. Repos that are not in `sync` in that snapshot are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import psycopg
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.string import ByteaBinaryLoader

from connectors.postgres.connection import Database, own_transaction
from connectors.postgres.stored_forms import commit_block
from schemas.sql import queries
from steps.repo_audit import FindingKind, RowAudit, StoredHead, check_commit, check_rows

FETCH_ROWS = 5000
FETCH_BODIES = 500
SQL = queries("audit")

Connection = psycopg.Connection[tuple[Any, ...]]
_opened: dict[str, Database[TupleRow]] = {}


@dataclass(slots=True)
class AuditChunk:
    """Result of one chunk. `unsigned`: heads whose stored key did not sign them; they need the current key."""

    checked: list[RowAudit] = field(default_factory=list)
    heads: list[StoredHead] = field(default_factory=list)
    unsigned: list[StoredHead] = field(default_factory=list)


def check_chunk(database: str, dids: Sequence[str], *, bodies: bool) -> AuditChunk:
    """Audit these repos. Rows that cannot be read are a finding. Raises psycopg.Error."""
    try:
        return _check(_connection(database), dids, bodies=bodies)
    except psycopg.DataError as err:
        if len(dids) > 1:
            parts = [check_chunk(database, [did], bodies=bodies) for did in dids]
            return AuditChunk(
                [one for part in parts for one in part.checked],
                [head for part in parts for head in part.heads],
                [head for part in parts for head in part.unsigned],
            )
        checked = RowAudit(dids[0])
        checked.find(FindingKind.BAD_ROWS, " ".join(str(err).split()))
        return AuditChunk([checked], _heads(_connection(database), dids))


def _check(db: Connection, dids: Sequence[str], *, bodies: bool) -> AuditChunk:
    chunk = AuditChunk()
    with own_transaction(db):
        chunk.heads = _heads(db, dids)
        if not chunk.heads:
            return chunk
        filtered = db.execute(SQL["filtered"]).fetchone() == (True,)
        repos = _by_repo(db, [head.did for head in chunk.heads], bodies=bodies)
        number, rows = next(repos, (0, iter(())))
        for at, head in enumerate(chunk.heads, 1):
            own = (row[1:] for row in rows) if number == at else iter(())
            checked = check_rows(head, own, bodies=bodies, filtered=filtered)
            if number == at:
                for _ in rows:  # rows that were not read because the tree was bad
                    pass
                number, rows = next(repos, (0, iter(())))
            for finding in check_commit(head, head.signing_key):
                if finding.kind in (FindingKind.SIGNATURE, FindingKind.NO_KEY):
                    chunk.unsigned.append(head)
                else:
                    checked.find(finding.kind, finding.detail)
            chunk.checked.append(checked)
    return chunk


def _heads(db: Connection, dids: Sequence[str]) -> list[StoredHead]:
    rows = db.execute(SQL["heads"], {"dids": list(dids)}, binary=True)
    return [
        StoredHead(did, rev, data, commit, commit_block(block, did, rev, data), key)
        for did, rev, data, commit, block, key in rows
    ]


def _by_repo(db: Connection, dids: list[str], *, bodies: bool) -> Iterator[tuple[int, Iterator[Any]]]:
    """(number of the repo in `dids`, from 1, and its rows). Repos without rows are left out."""
    with db.cursor("audit", binary=True) as cursor:
        cursor.itersize = FETCH_BODIES if bodies else FETCH_ROWS
        cursor.execute(SQL["leaves" if bodies else "roots"], {"dids": dids}, binary=True)
        yield from groupby(cursor, key=itemgetter(0))


def _connection(database: str) -> Connection:
    if database not in _opened:
        _opened[database] = Database(database, "sluice audit", tuple_row, opened=_snapshots)
    return _opened[database]()


def _snapshots(db: Connection) -> None:
    """Read one snapshot per transaction; load a record's JSON as bytes."""
    db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    db.read_only = True
    db.adapters.register_loader("json", ByteaBinaryLoader)


def close_connection(database: str) -> None:
    """Close this process's connection, if it has one."""
    db = _opened.pop(database, None)
    if db is not None:
        db.close()
