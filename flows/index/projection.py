"""The index's plug-in interface: tables that are derived from `sluice.record` in the index's own transaction.

The index imports no projection. `local/dataflows.py` and the commands of `ops/` and `control/` pass one to `IndexStore`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import psycopg

from steps.gate.batch import Row, WriteBatch

Key = tuple[str, str, str]
"""did, collection, rkey."""

Connection = psycopg.Connection[Any]


class ProjectedChanges(Protocol):
    """The record changes of one index transaction. The index reports each one as it writes it, then calls `apply`."""

    def copied(self, rows: Sequence[Row]) -> None:
        """Rows that were inserted; none of them existed."""

    def staged(self, rows: Sequence[Row], writes: WriteBatch) -> None:
        """Rows in the temporary table `stage_record`. The upsert follows; `sluice.record` still has the previous rows."""

    def deleted(self, rows: Iterable[tuple[str, str, str, int | None]], when: Mapping[Key, int | None]) -> None:
        """Deleted rows as (did, collection, rkey, came). `when`: the log's time of the deletion, where it is known."""

    def written(self, writes: WriteBatch) -> None:
        """All rows of `writes` are written; `writes.replaced` are those that never became visible."""

    def apply(self, *, singly: bool) -> None:
        """Update the derived tables, last before the commit. Raises psycopg.Error.

        `singly`: isolate each record in a savepoint, so that a refused record does not affect the others.
        """


class Maintenance(Protocol):
    """A background thread of the index process."""

    def start(self) -> None:
        """Start the thread."""

    def check(self) -> None:
        """Raise the error that ended the thread."""

    def close(self) -> None:
        """Stop the thread; waits for it a limited time."""


class Projection(Protocol):
    """A plug-in of the index."""

    def prepare(self) -> None:
        """Switch it on or off in the database, as configured, before the index reads. Raises OperatorError."""

    def is_active(self, db: Connection) -> bool:
        """Whether the database has it switched on: then every writer of records must maintain it, a replay too."""

    def changes(self, db: Connection) -> ProjectedChanges:
        """A collector for one transaction (or savepoint) of this connection."""

    def maintenance(self) -> Maintenance | None:
        """The thread that the index process must run, if any."""
