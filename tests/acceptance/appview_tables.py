"""The tables of two databases of the AppView, row by row: ours beside the one that the official indexer filled.

Rows are compared whole, but for: `id` (a sequence); `indexedAt` of what the mirror fetched from a PDS and the official indexer
saw as events, of edits that one of them refuses, and of accounts (when the handle was looked up); a profile's createdAt where the record has none (it is the time
of indexing); the time in `deletedAt`; what was told to accounts that are no more. `sortAt` is compared everywhere.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import psycopg

NOT_DATA = {"kysely_migration", "kysely_migration_lock", "view_param", "algo_whats_hot_view"}
SOME_TIME = "some time"

TABLES = """
SELECT c.relname, array_agg(a.attname ORDER BY a.attname)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'bsky'
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'v') GROUP BY c.relname
"""

UNDATED_PROFILES = (
    "SELECT uri FROM record WHERE uri LIKE '%/app.bsky.actor.profile/self' AND json NOT LIKE '%\"createdAt\"%'"
)

Row = tuple[tuple[str, Any], ...]


def tables_of(connection: psycopg.Connection[Any]) -> dict[str, list[str]]:
    return {name: columns for name, columns in connection.execute(TABLES) if name not in NOT_DATA}


class Expected(NamedTuple):
    """What happened that makes two right databases say different times."""

    mirrored_from: str  # when the mirror started, as `indexedAt` says times
    arrived: str  # DID of an account that the mirror met later, and fetched
    gone: list[str]  # DIDs of deleted accounts
    edited: set[str]  # URIs of records whose edit the official indexer refused


class Normal(NamedTuple):
    """What two right databases need not share."""

    fetched: frozenset[str]  # URIs of other times: the mirror fetched them, or one refused the edit
    undated: frozenset[str]  # of profiles
    gone: frozenset[str]  # DIDs of deleted accounts

    def row(self, table: str, row: dict[str, Any]) -> dict[str, Any] | None:
        row.pop("id", None)
        if table == "record":
            row["json"] = json.loads(row["json"])
        if table == "notification" and row["did"] in self.gone:
            return None
        if table == "profile" and row["uri"] in self.undated:
            row["createdAt"] = SOME_TIME
        if table == "actor" or ("indexedAt" in row and row.get("uri") in self.fetched):
            row["indexedAt"] = SOME_TIME
        if row.get("deletedAt"):
            row["deletedAt"] = SOME_TIME
        return row


def unlike_rows(
    theirs: psycopg.Connection[Any], ours: psycopg.Connection[Any], expected: Expected, newer: frozenset[str]
) -> list[str]:
    """One line for each row that only one has. Tables that only one has must be empty there, but for those that are `newer`
    than the official indexer. Both connections look into `bsky`."""
    found = []
    for each in (theirs, ours):
        each.rollback()
        each.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    fetched = theirs.execute(
        'SELECT uri FROM record WHERE "indexedAt" < %s OR did = %s', [expected.mirrored_from, expected.arrived]
    )
    undated = theirs.execute(UNDATED_PROFILES)
    timeless = {uri for (uri,) in fetched} | expected.edited
    normal = Normal(frozenset(timeless), frozenset(u for (u,) in undated), frozenset(expected.gone))
    wanted, has = tables_of(theirs), tables_of(ours)
    for table in sorted((wanted.keys() | has.keys()) - newer):
        if table not in wanted or table not in has:
            there = theirs if table in wanted else ours
            count = there.execute(f'SELECT count(*) FROM "{table}"').fetchone()
            found += [f"{table}: only one has it, with {count} rows"] if count != (0,) else []
            continue
        columns = sorted(set(wanted[table]) & set(has[table]))
        right, given = (rows(each, table, columns, normal) for each in (theirs, ours))
        found += [f"{table}: lacks {shown(row)}" for row in sorted(right - given, key=repr)]
        found += [f"{table}: must not hold {shown(row)}" for row in sorted(given - right, key=repr)]
    return found


def rows(connection: psycopg.Connection[Any], table: str, columns: list[str], normal: Normal) -> set[Row]:
    names = ", ".join(f'"{column}"' for column in columns)
    found = set()
    for values in connection.execute(f'SELECT {names} FROM "{table}"'):
        row = normal.row(table, dict(zip(columns, values, strict=True)))
        if row is not None:
            found.add(tuple(sorted((name, json.dumps(value, sort_keys=True)) for name, value in row.items())))
    return found


def shown(row: Row) -> str:
    return " ".join(f"{name}={value[:80]}" for name, value in row if value != "null")
