"""Records with the same unique key, such as two likes of one post: the oldest (indexedAt) owns it, the others are duplicates.

At equal times the first to arrive owns it: the present owner, then the order of the commit. A rebuild has no such order: former
duplicates (`formerly`) come last, and the URI decides between others. This is rare, since a PDS itself removes the older like,
so it may cost a few statements. All records of one key are in one repo, whose row this transaction has locked.
"""

from dataclasses import dataclass, field
from typing import Any

import psycopg

from appview import statements as tables
from appview.projection.rows import COLUMNS, UNIQUE
from appview.projection.values import Row
from appview.sql import queries
from connectors.postgres.pg_array import array

SQL = queries("writer")


@dataclass(slots=True)
class UniqueConflict:
    """Rows of one table, some of which were not inserted. `resolve` decides the owner of each key."""

    db: psycopg.Connection[Any]
    table: str
    rows: list[Row]
    formerly: set[str] = field(default_factory=set)  # URIs that were duplicates before a rebuild
    by_uri: bool = False  # a rebuild: the rows have no order of arrival
    duplicates: set[str] = field(default_factory=set)  # URIs of these rows that own no key
    evicted: list[str] = field(default_factory=list)  # former owners, of the table or of these rows
    removed: list[tuple[Any, ...]] = field(
        default_factory=list
    )  # rows of former owners, as `statements.delete` returns

    def resolve(self) -> None:
        """Decide the owner of every key whose row was not inserted."""
        columns = COLUMNS[self.table]
        key_at = [columns.index(name) for name in UNIQUE[self.table]]
        time_at = columns.index("indexedAt")
        uris = array([str(row[0]) for row in self.rows])
        order = {row: (at, str(row[0])) if not self.by_uri else (0, str(row[0])) for at, row in enumerate(self.rows)}
        position = {str(row[0]): at for row, at in order.items()}
        present = {row[0] for row in self.db.execute(tables.PRESENT[self.table], [uris])}
        claims: dict[Row, list[Row]] = {}
        for row in self.rows:
            if row[0] not in present:
                claims.setdefault(tuple(row[at] for at in key_at), []).append(row)
        keys = [array(column) for column in zip(*claims, strict=True)]
        for uri, cid, time, *key in self.db.execute(tables.OWNERS[self.table], keys).fetchall():
            rivals = claims[tuple(key)]
            best = min(rivals, key=lambda row: (row[time_at], str(row[0]) in self.formerly, order[row]))
            owner_rank = (time, uri in self.formerly, position.get(uri, (-1, uri)))
            if (best[time_at], str(best[0]) in self.formerly, order[best]) < owner_rank:
                self._evict(uri, best)
                owner = str(best[0])
                self._record_duplicates(
                    [row for row in rivals if row is not best], owner, time_at, [(uri, cid, owner, time)]
                )
            else:
                self._record_duplicates(rivals, uri, time_at, [])

    def _evict(self, uri: str, next_owner: Row) -> None:
        gone = tables.delete(self.db, self.table, [uri])
        if uri not in {row[0] for row in self.rows}:
            self.removed += gone
        tables.insert(self.db, self.table, [next_owner])
        self.db.execute(SQL["move_duplicates"], {"formers": [uri], "owners": [str(next_owner[0])]})
        self.evicted.append(uri)
        self.duplicates.add(uri)  # it may be one of these rows

    def _record_duplicates(
        self, rows: list[Row], owner: str, time_at: int, more: list[tuple[str, str, str, str]]
    ) -> None:
        self.duplicates |= {str(row[0]) for row in rows}
        found = [(str(row[0]), str(row[1]), owner, str(row[time_at])) for row in rows] + more
        if found:
            uris, cids, owners, times = (array(column) for column in zip(*found, strict=True))
            self.db.execute(SQL["add_duplicates"], {"uris": uris, "cids": cids, "owners": owners, "times": times})
