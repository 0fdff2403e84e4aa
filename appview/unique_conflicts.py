"""Records that want a key which another record holds: the oldest (indexedAt) gets it, the others are duplicates.

Of two of one time it is the one that came first: the one that holds it, then the first of the commit. A rebuild knows this of those
that were duplicates before (`formerly`), and takes the others by URI. Rare (a PDS removes an older like of the same post by itself), so it may cost a few statements. All records of one key lie
in one repo, whose row this transaction has locked: nobody else decides about them meanwhile.
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

Claim = tuple[str, str, str]  # indexedAt, uri, cid


@dataclass(slots=True)
class Contest:
    """Rows of one table, not all of which went in. `settle` says who holds the keys."""

    db: psycopg.Connection[Any]
    table: str
    rows: list[Row]
    formerly: set[str] = field(default_factory=set)  # URIs of duplicates before a rebuild
    by_uri: bool = False  # the rows are in no order
    losers: set[str] = field(default_factory=set)  # of these rows
    unseated: list[str] = field(default_factory=list)  # rows of before, or of this batch, that gave way
    taken_over: list[tuple[Any, ...]] = field(
        default_factory=list
    )  # what `appview_tables.SUBJECTS` asks of those of before

    def settle(self) -> None:
        """Judge every key that was asked for in vain."""
        columns = COLUMNS[self.table]
        key_at = [columns.index(name) for name in UNIQUE[self.table]]
        time_at = columns.index("indexedAt")
        uris = array([str(row[0]) for row in self.rows])
        order = {row: (at, str(row[0])) if not self.by_uri else (0, str(row[0])) for at, row in enumerate(self.rows)}
        places = {str(row[0]): place for row, place in order.items()}
        present = {row[0] for row in self.db.execute(tables.PRESENT[self.table], [uris])}
        claims: dict[Row, list[Row]] = {}
        for row in self.rows:
            if row[0] not in present:
                claims.setdefault(tuple(row[at] for at in key_at), []).append(row)
        keys = [array(column) for column in zip(*claims, strict=True)]
        for uri, cid, time, *key in self.db.execute(tables.OWNERS[self.table], keys).fetchall():
            rivals = claims[tuple(key)]
            best = min(rivals, key=lambda row: (row[time_at], str(row[0]) in self.formerly, order[row]))
            holds = (time, uri in self.formerly, places.get(uri, (-1, uri)))
            if (best[time_at], str(best[0]) in self.formerly, order[best]) < holds:
                self._unseat(uri, best)
                owner = str(best[0])
                self._record_losers(
                    [row for row in rivals if row is not best], owner, time_at, [(uri, cid, owner, time)]
                )
            else:
                self._record_losers(rivals, uri, time_at, [])

    def _unseat(self, uri: str, heir: Row) -> None:
        gone = tables.delete(self.db, self.table, [uri])
        if uri not in {row[0] for row in self.rows}:
            self.taken_over += gone
        tables.insert(self.db, self.table, [heir])
        self.db.execute(SQL["move_duplicates"], {"formers": [uri], "owners": [str(heir[0])]})
        self.unseated.append(uri)
        self.losers.add(uri)  # if it came with this batch

    def _record_losers(self, rows: list[Row], owner: str, time_at: int, more: list[tuple[str, str, str, str]]) -> None:
        self.losers |= {str(row[0]) for row in rows}
        waiting = [(str(row[0]), str(row[1]), owner, str(row[time_at])) for row in rows] + more
        if waiting:
            uris, cids, owners, times = (array(column) for column in zip(*waiting, strict=True))
            self.db.execute(SQL["add_duplicates"], {"uris": uris, "cids": cids, "owners": owners, "times": times})
