"""What one index transaction really changes in `sluice.record`, by path and CID, of the collections that an AppView knows."""

from collections.abc import Iterable, Mapping

from appview.projection.project import KNOWN
from steps.gate.batch import ORDERED
from steps.gate.batch import Row as RecordRow

Key = tuple[str, str, str]  # did, collection, rkey


class Changes:
    """Paths of known collections that a transaction changes: whether they were there before it, and what stands there now.

    invalid   edits that the AppView refuses: reason, and `came` of what it shows instead (`sluice.appview_record.kept_json`)
    ended     URI → when what stood there before came and when it went, of follows, list items and gates
    passed    records that came and went within this transaction
    """

    def __init__(self) -> None:
        self._before: dict[Key, bool] = {}
        self._now: dict[Key, RecordRow | None] = {}
        self._came: dict[Key, int | None] = {}
        self._gone: dict[Key, int | None] = {}
        self.invalid: dict[Key, tuple[str, int | None]] = {}
        self.passed: list[tuple[RecordRow, int | None]] = []

    def put(self, row: RecordRow, *, existed: bool, came: int | None = None) -> None:
        """A row that is new or has another CID. `existed`, `came`: as the table had it when this was written."""
        if row[1] in KNOWN:
            key = row[:3]
            if existed:
                self._came.setdefault(key, came)
                self._gone.setdefault(key, row[10])
            self._before.setdefault(key, existed)
            self._now[key] = row
            self.invalid.pop(key, None)

    def keep(self, key: Key, reason: str, came: int | None) -> None:
        """An edit that is not valid: what was there before is shown on."""
        self.invalid[key] = reason, came

    def gone(self, rows: Iterable[tuple[str, str, str, int | None]], when: Mapping[Key, int | None]) -> None:
        """Rows that were deleted, with their `came`. `when`: when the log took that, where it is known."""
        for *path, came in rows:
            key = path[0], path[1], path[2]
            if key[1] in KNOWN:
                self._came.setdefault(key, came)
                self._gone.setdefault(key, when.get(key))
                self._before.setdefault(key, True)
                self._now[key] = None
                self.invalid.pop(key, None)

    def __bool__(self) -> bool:
        return bool(self._now or self.invalid or self.passed)

    def former(self) -> list[Key]:
        """Paths whose rows of before this transaction are out of date."""
        return [key for key, existed in self._before.items() if existed]

    def current(self) -> list[RecordRow]:
        """Records to project."""
        return [row for row in self._now.values() if row is not None]

    def stands(self, key: Key) -> bool:
        """Is there a record now? Of paths that changed."""
        return self._now.get(key) is not None

    def changed(self, key: Key) -> bool:
        """Whether this path is one of those that changed."""
        return key in self._now

    def ended(self) -> dict[str, tuple[int | None, int | None]]:
        """See above; of all paths that were there before."""
        return {
            f"at://{did}/{collection}/{rkey}": (came, self._gone.get((did, collection, rkey)))
            for (did, collection, rkey), came in self._came.items()
            if collection in ORDERED
        }
