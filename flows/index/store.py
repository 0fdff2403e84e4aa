"""The index's connection to PostgreSQL, and its transactions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from connectors.kafka.log import Part
from connectors.postgres.connection import own_transaction, tuple_database
from connectors.postgres.main_database import MainDatabase
from connectors.postgres.shards import Shards
from flows.index.collection_ids import CollectionIds
from flows.index.current_filter import CurrentFilter
from flows.index.projection import Connection, Projection
from flows.index.record_rows import RecordRows
from flows.index.stream_offsets import start_positions
from flows.index.transaction import IndexTransaction
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import FIREHOSE_BACKFILL

SQL = queries("index")


class IndexStore:
    """Connects on first use, and again after a lost connection.

    `projection` has no default: a writer without it would let the derived tables drift from the records.
    `group`: the consumer group whose offsets are moved; a replay has its own. `main`: settings of the main database, for a shard:
    what belongs there is written before the shard's transaction commits, and may be written twice.
    """

    def __init__(
        self,
        settings: Settings,
        cluster: str,
        projection: Projection | None,
        group: str = "index",
        main: Settings | None = None,
    ) -> None:
        self._scope = {"cluster": cluster, "group": settings.group(group)}
        self._backfill = settings.topic(FIREHOSE_BACKFILL)
        self._database = tuple_database(settings, "sluice index", opened=self._opened)
        apart = main is not None and main.database != settings.database
        self._main = MainDatabase(main if apart else None, self._database, "sluice index")
        self._lease_seconds = settings.tuning.replayed_lease_seconds
        self._collections = CollectionIds(settings)
        self._filter = CurrentFilter()
        self._projection = projection
        self._active: Projection | None = None

    def _opened(self, db: Connection) -> None:
        db.execute(SQL["plan_by_key"])
        db.execute(SQL["make_stage"])
        self._active = self._projection if self._projection is not None and self._projection.is_active(db) else None

    @contextmanager
    def transaction(self, *, singly: bool = False, within: bool = False) -> Iterator[IndexTransaction]:
        """One transaction, READ COMMITTED; the projection is applied last. Raises psycopg.Error.

        `within` another transaction it is a savepoint: an error undoes only its own writes.
        `singly`: see `ProjectedChanges.apply`.
        """
        db = self._database()
        with db.transaction() if within else own_transaction(db):
            changes = None if self._active is None else self._active.changes(db)
            rows = RecordRows(db, self._collections, changes, staged=within)
            filtered = self._filter.read(db)
            transaction = IndexTransaction(db, self._scope, filtered, rows, self._main, self._lease_seconds)
            yield transaction
            if changes is not None:
                db.execute(SQL["plan_freely"])
                changes.apply(singly=singly)
                if within:
                    db.execute(SQL["plan_by_key"])  # RELEASE keeps the settings of a savepoint
        for report in transaction.committed:
            report()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()
        self._main.close()
        self._collections.close()

    def starts(self, marks: Mapping[Part, tuple[int, int]]) -> dict[Part, int]:
        """Where to read each partition, given its (log start, log end). Raises PositionAheadOfLog, psycopg.Error."""
        db = self._database()
        with own_transaction(db):
            return start_positions(db, self._main, self._scope, marks, self._backfill)


def index_stores(
    settings: Settings, cluster: str, projection: Projection | None, group: str = "index"
) -> Shards[IndexStore]:
    """The store of each shard."""
    return Shards(settings, lambda one: IndexStore(one, cluster, projection, group, main=settings))
