"""The catalog of the schema `bsky`, one line per fact, so that two schemas compare as sets of lines.

`catalog(connection)` → facts. A view has no keys, no indexes and no NOT NULL: where the other schema has a
table, `differences` compares names and types of columns only, and notes once that it is a view.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

COLUMNS = """
SELECT c.relname, c.relkind::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '',
       coalesce(pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'bsky'
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind IN ('r', 'v', 'm', 'p')
"""
KEYS = """
SELECT r.conrelid::regclass::text, r.conname, pg_get_constraintdef(r.oid)
FROM pg_constraint r JOIN pg_namespace n ON n.oid = r.connamespace AND n.nspname = 'bsky'
WHERE r.contype IN ('p', 'u', 'f', 'c', 'x')
"""
INDEXES = """
SELECT i.indrelid::regclass::text, c.relname, pg_get_indexdef(c.oid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'bsky'
WHERE NOT EXISTS (SELECT FROM pg_constraint r WHERE r.conindid = c.oid)
"""


class Catalog(NamedTuple):
    kinds: dict[str, str]  # relation → r, v, m
    columns: dict[str, set[str]]  # relation → "name type"
    details: dict[str, set[str]]  # relation → NOT NULL, defaults, keys and indexes


def catalog(connection: psycopg.Connection[Any]) -> Catalog:
    """`connection` has `bsky` in its search path, so names come without the schema."""
    kinds: dict[str, str] = {}
    columns: dict[str, set[str]] = {}
    details: dict[str, set[str]] = {}
    for table, kind, name, type_, not_null, generated, default in connection.execute(COLUMNS):
        kinds[table] = kind
        columns.setdefault(table, set()).add(f"{name} {type_}")
        facts = details.setdefault(table, set())
        if not_null:
            facts.add(f"{name} NOT NULL")
        if default:
            facts.add(f"{name} {'generated' if generated else 'default'} {without_schema(default)}")
    for query in (KEYS, INDEXES):
        for table, name, definition in connection.execute(query):
            details[table.strip('"')].add(f"{name}: {without_schema(definition)}")
    return Catalog(kinds, columns, details)


def without_schema(text: str) -> str:
    return text.replace("bsky.", "").replace("public.", "")


def differences(theirs: Catalog, ours: Catalog) -> set[str]:
    """`table: + fact` is ours alone, `table: - fact` theirs alone."""
    found = {f"- table {table}" for table in theirs.kinds.keys() - ours.kinds.keys()}
    found |= {f"+ table {table}" for table in ours.kinds.keys() - theirs.kinds.keys()}
    for table in theirs.kinds.keys() & ours.kinds.keys():
        pairs = [(theirs.columns[table], ours.columns[table])]
        if theirs.kinds[table] == ours.kinds[table]:
            pairs.append((theirs.details[table], ours.details[table]))
        else:
            found.add(f"{table}: is {ours.kinds[table]}, not {theirs.kinds[table]}")
        for wanted, is_ in pairs:
            found |= {f"{table}: - {fact}" for fact in wanted - is_}
            found |= {f"{table}: + {fact}" for fact in is_ - wanted}
    return found
