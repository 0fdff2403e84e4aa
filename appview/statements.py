"""Statements on the AppView's tables, generated from the columns in `appview.projection.rows`: twenty tables differ only in these."""

from collections.abc import Mapping, Sequence

import psycopg
from psycopg import sql

from appview.projection.rows import COLUMNS, OWNER, UNIQUE
from appview.projection.values import Row
from connectors.postgres.pg_array import array

Db = psycopg.Connection[tuple[object, ...]]

OF_COLLECTION: dict[str, tuple[str, ...]] = {
    "app.bsky.feed.like": ("like",),
    "app.bsky.feed.repost": ("repost", "feed_item"),
    "app.bsky.feed.threadgate": ("thread_gate",),
    "app.bsky.feed.postgate": ("post_gate",),
    "app.bsky.feed.generator": ("feed_generator",),
    "app.bsky.graph.follow": ("follow",),
    "app.bsky.graph.block": ("actor_block",),
    "app.bsky.graph.list": ("list",),
    "app.bsky.graph.listblock": ("list_block",),
    "app.bsky.graph.listitem": ("list_item",),
    "app.bsky.graph.referencelistoptout": ("reference_list_opt_out",),
    "app.bsky.graph.starterpack": ("starter_pack",),
    "app.bsky.graph.verification": ("verification",),
    "app.bsky.actor.profile": ("profile",),
    "app.bsky.labeler.service": ("labeler",),
    "app.bsky.feed.post": (
        *("post", "feed_item", "post_embed_image", "post_embed_gallery_image", "post_embed_external"),
        *("post_embed_record", "post_embed_video"),
    ),
}
"""Collection → tables that hold rows of its records (`op_thread_reply` has another key, `quote` is left to reconcile.py)."""

SUBJECTS: dict[str, tuple[str, ...]] = {
    "like": ("subject",),
    "repost": ("subject",),
    "follow": ("creator", "subjectDid"),
    "post": ("creator", "replyParent", "replyRoot", "violatesThreadGate"),
    "list_item": ("subjectDid", "listUri"),
    "thread_gate": ("postUri",),
    "post_gate": ("postUri",),
}
"""Columns that a delete returns: the counters and flags of these change."""


def _names(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _table(name: str) -> sql.Identifier:
    return sql.Identifier("bsky", name)


def _copy(table: str) -> sql.Composed:
    return sql.SQL("copy {} ({}) from stdin").format(_table(table), _names(COLUMNS[table]))


def _insert(table: str) -> sql.Composed:
    """Skips rows whose unique key is taken."""
    arrays = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(COLUMNS[table]))
    return sql.SQL("insert into {} ({}) select * from unnest({}) on conflict do nothing").format(
        _table(table), _names(COLUMNS[table]), arrays
    )


def _delete(table: str) -> sql.Composed:
    owner = OWNER.get(table, "uri")
    asked = SUBJECTS.get(table)
    statement = sql.SQL("delete from {} where {} = any(%s::text[])").format(_table(table), sql.Identifier(owner))
    return statement if asked is None else statement + sql.SQL(" returning ") + _names((owner, *asked))


def _remove(table: str) -> sql.Composed:
    """By the range of URIs below `at://did/`, in the order of the primary key: "0" is the character after "/"."""
    owner = sql.Identifier("rootUri" if table == "op_thread_reply" else OWNER.get(table, "uri"))
    statement = sql.SQL(
        "delete from {} t using unnest(%s::text[]) as d (did) where t.{} > 'at://' || d.did || '/' and t.{} < 'at://' || d.did || '0'"
    ).format(_table(table), owner, owner)
    if table == "feed_item":
        statement += sql.SQL(" and t.type = 'post'")  # that of a repost is left to reconcile.py
    asked = SUBJECTS.get(table)
    if asked is None:
        return statement
    returned = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in ("uri", *asked))
    return statement + sql.SQL(" returning ") + returned


def _owners(table: str) -> sql.Composed:
    """The owners of these unique keys: (uri, cid, indexedAt, key…)."""
    key = UNIQUE[table]
    equal = sql.SQL(" and ").join(
        sql.SQL("t.{} = k.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in key
    )
    arrays = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(key))
    asked = sql.SQL(", ").join(
        sql.SQL("t.{}").format(sql.Identifier(name)) for name in ("uri", "cid", "indexedAt", *key)
    )
    return sql.SQL("select distinct {} from {} t join unnest({}) as k ({}) on {}").format(
        asked, _table(table), arrays, _names(key), equal
    )


COPY = {table: _copy(table) for table in COLUMNS}
INSERT = {table: _insert(table) for table in UNIQUE}
DELETE = {table: _delete(table) for tables in OF_COLLECTION.values() for table in tables}
OWNERS = {table: _owners(table) for table in UNIQUE}
PRESENT = {table: sql.SQL("select uri from {} where uri = any(%s::text[])").format(_table(table)) for table in UNIQUE}


REMOVE = {table: _remove(table) for table in (*DELETE, "op_thread_reply")}


def count(table: str) -> sql.Composed:
    """Counts the rows of a table."""
    return sql.SQL("select count(*) from {}").format(_table(table))


def remove_repos(db: Db, table: str, dids: Sequence[str]) -> list[tuple[object, ...]]:
    """Delete the rows of these repos; returns their URI and the columns of `SUBJECTS`."""
    cursor = db.execute(REMOVE[table], [array(dids)])
    return cursor.fetchall() if cursor.description else []


LONGEST = 1200
"""Bytes of a value in an index. A PostgreSQL entry has at most 2,704: two such values and short ones."""
FREE = {"text", "description", "descriptionFacets", "displayName", "title", "alt", "langs", "tags", "name", "purpose"}
BOUND = {
    table: [at for at, column in enumerate(columns) if column not in FREE]
    for table, columns in COLUMNS.items()
    if table != "post_embed_external"
}


def too_long(rows: Mapping[str, Sequence[Row]]) -> bool:
    """Whether an index would refuse one of these rows, and with it the whole transaction."""
    for table, of in rows.items():
        for row in of:
            for at in BOUND.get(table, ()):
                value = row[at]
                if value is not None and len(value) * 4 > LONGEST and len(value.encode()) > LONGEST:
                    return True
    return False


def copy(db: Db, table: str, rows: Sequence[Row]) -> None:
    """Insert rows that cannot exist yet."""
    with db.cursor() as cursor, cursor.copy(COPY[table]) as stream:
        for row in rows:
            stream.write_row(row)


def insert(db: Db, table: str, rows: Sequence[Row]) -> int:
    """Insert the rows whose unique key is free; returns how many."""
    return db.execute(INSERT[table], [array(column) for column in zip(*rows, strict=True)]).rowcount


def delete(db: Db, table: str, uris: Sequence[str]) -> list[tuple[object, ...]]:
    """Delete the rows of these records; returns their URI and the columns of `SUBJECTS`."""
    cursor = db.execute(DELETE[table], [array(uris)])
    return cursor.fetchall() if table in SUBJECTS else []
