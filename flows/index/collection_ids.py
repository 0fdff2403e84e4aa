"""Collections as numbers: `sluice.collection`, with a bounded cache.

New names are inserted by statements of their own on a second connection: in the index's transaction, two workers that meet the
same new names in different orders would deadlock.
"""

from collections.abc import Iterable

from cachetools import LRUCache

from connectors.postgres.connection import tuple_database
from connectors.postgres.pg_array import array
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("index")
KEPT = 50_000
"""Names in the cache. The network has some thousands; anyone may invent more."""


class CollectionIds:
    """Ids by name; connects when it meets a name that is not cached."""

    def __init__(self, settings: Settings) -> None:
        self._database = tuple_database(settings, "sluice collections")
        self._cache: LRUCache[str, int] = LRUCache(KEPT)
        self.close = self._database.close

    def of(self, names: Iterable[str]) -> dict[str, int]:
        """The ids of these names, which are inserted if they are new. Raises psycopg.Error."""
        wanted = set(names)
        found = {name: self._cache[name] for name in wanted if name in self._cache}
        if missing := sorted(wanted - found.keys()):
            db = self._database()
            db.execute(SQL["add_collections"], {"names": array(missing)})
            new: dict[str, int] = dict(db.execute(SQL["collections"], {"names": array(missing)}).fetchall())
            self._cache.update(new)
            found |= new
        return found
