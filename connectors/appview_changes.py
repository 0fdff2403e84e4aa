"""What one index transaction really changes in `sluice.record`, by path and CID, of the collections that an AppView knows."""

from collections.abc import Iterable

from steps.appview.project import KNOWN
from steps.settle import Row as RecordRow

Key = tuple[str, str, str]  # did, collection, rkey


class Changes:
    """Paths of known collections that a transaction changes: whether they were there before it, and what stands there now."""

    def __init__(self) -> None:
        self._before: dict[Key, bool] = {}
        self._now: dict[Key, RecordRow | None] = {}

    def put(self, row: RecordRow, *, existed: bool) -> None:
        """A row that is new or has another CID. `existed`: as the table had it when this was written."""
        if row[1] in KNOWN:
            key = row[:3]
            self._before.setdefault(key, existed)
            self._now[key] = row

    def gone(self, keys: Iterable[Key]) -> None:
        """Rows that were deleted."""
        for key in keys:
            if key[1] in KNOWN:
                self._before.setdefault(key, True)
                self._now[key] = None

    def __bool__(self) -> bool:
        return bool(self._now)

    def former(self) -> list[Key]:
        """Paths whose rows of before this transaction are out of date."""
        return [key for key, existed in self._before.items() if existed]

    def current(self) -> list[RecordRow]:
        """Records to project."""
        return [row for row in self._now.values() if row is not None]

    def stands(self, key: Key) -> bool:
        """Is there a record now? Of paths that changed."""
        return self._now.get(key) is not None
