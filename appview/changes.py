"""The net changes of one index transaction in `sluice.record`, by path and CID, in the collections of the AppView."""

from collections.abc import Iterable, Mapping

from appview.projection.project import KNOWN
from flows.index.projection import Key
from steps.gate.batch import ORDERED
from steps.gate.batch import Row as RecordRow


class Changes:
    """Changed paths of known collections: whether each existed before the transaction, and its record now.

    invalid   refused edits: reason, and `came` of the version shown instead (`sluice.appview_record.kept_json`)
    transient    records that were created and removed within the transaction, with the time of their removal
    """

    def __init__(self) -> None:
        self._before: dict[Key, bool] = {}
        self._now: dict[Key, RecordRow | None] = {}
        self._came: dict[Key, int | None] = {}
        self._gone: dict[Key, int | None] = {}
        self.invalid: dict[Key, tuple[str, int | None]] = {}
        self.transient: list[tuple[RecordRow, int | None]] = []

    def put(self, row: RecordRow, *, existed: bool, came: int | None = None) -> None:
        """A row that is new or has another CID. `existed`, `came`: of the row it replaces."""
        if row[1] in KNOWN:
            key = row[:3]
            if existed:
                self._came.setdefault(key, came)
                self._gone.setdefault(key, row[10])
            self._before.setdefault(key, existed)
            self._now[key] = row
            self.invalid.pop(key, None)

    def keep(self, key: Key, reason: str, came: int | None) -> None:
        """An invalid edit: the previous version stays visible."""
        self.invalid[key] = reason, came

    def delete(self, rows: Iterable[tuple[str, str, str, int | None]], when: Mapping[Key, int | None]) -> None:
        """Deleted rows with their `came`. `when`: the log's time of the deletion, where it is known."""
        for *path, came in rows:
            key = path[0], path[1], path[2]
            if key[1] in KNOWN:
                self._came.setdefault(key, came)
                self._gone.setdefault(key, when.get(key))
                self._before.setdefault(key, True)
                self._now[key] = None
                self.invalid.pop(key, None)

    def __bool__(self) -> bool:
        return bool(self._now or self.invalid or self.transient)

    def former(self) -> list[Key]:
        """Paths that existed before the transaction: their derived rows are out of date."""
        return [key for key, existed in self._before.items() if existed]

    def current(self) -> list[RecordRow]:
        """Records to project: those that exist now."""
        return [row for row in self._now.values() if row is not None]

    def exists(self, key: Key) -> bool:
        """Whether a changed path has a record now."""
        return self._now.get(key) is not None

    def changed(self, key: Key) -> bool:
        return key in self._now

    def ended(self) -> dict[str, tuple[int | None, int | None]]:
        """URI → (came, gone) of follows, list items, posts and gates that existed before and were replaced or deleted."""
        return {
            f"at://{did}/{collection}/{rkey}": (came, self._gone.get((did, collection, rkey)))
            for (did, collection, rkey), came in self._came.items()
            if collection in ORDERED
        }
