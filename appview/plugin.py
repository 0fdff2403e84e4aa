"""The AppView as a projection of the index (`flows.index.projection`)."""

from collections.abc import Iterable, Mapping, Sequence

from typing_extensions import override

from appview import state
from appview.changes import Changes
from appview.edits import note_changed, transient
from appview.reconcile_thread import ReconcileThread
from appview.writer import AppViewWriter
from flows.index.projection import Connection, Key, Maintenance, ProjectedChanges, Projection
from schemas.settings import Settings
from steps.gate.batch import Row, WriteBatch


class AppView(Projection):
    """Tables in the schema `bsky`, maintained if SLUICE_APPVIEW is on."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @override
    def prepare(self) -> None:
        """Raises AppviewUnavailable."""
        state.begin(self._settings)

    @override
    def is_active(self, db: Connection) -> bool:
        return state.is_active(db)

    @override
    def changes(self, db: Connection) -> ProjectedChanges:
        return AppViewChanges(db)

    @override
    def maintenance(self) -> Maintenance | None:
        return ReconcileThread(self._settings) if self._settings.appview else None


class AppViewChanges(ProjectedChanges):
    """Collects changes by path and CID; `apply` projects their net result."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._changes = Changes()

    @override
    def copied(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._changes.put(row, existed=False)

    @override
    def staged(self, rows: Sequence[Row], writes: WriteBatch) -> None:
        note_changed(self._db, self._changes, {row[:3]: row for row in rows}, writes)

    @override
    def deleted(self, rows: Iterable[tuple[str, str, str, int | None]], when: Mapping[Key, int | None]) -> None:
        self._changes.delete(rows, when)

    @override
    def written(self, writes: WriteBatch) -> None:
        self._changes.transient += transient(writes)

    @override
    def apply(self, *, singly: bool) -> None:
        if self._changes:
            AppViewWriter(self._db).write(self._changes, singly=singly)
