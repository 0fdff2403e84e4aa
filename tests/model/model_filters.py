"""The filter of the model's database: `control/filter_changes.py` and the statements of `filter.sql`, one repo a step.

Collections alone; the network boundary has tests of its own (tests/filters). Every change moves the clock a little first,
as PostgreSQL's own would have: what was completed before is then older than the change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from steps.gate.filters import EVERYTHING, Filter, covers

COLLECTIONS = {"a": "c.o.l", "b": "c.o.m", "c": "c.x.y", "d": "c.o.l"}
"""rkey → its collection: a record's rkey is its whole path."""

CHOICES = (("*",), ("*",), ("c.o.*",), ("c.o.l",), ("c.o.m",), ("c.x.y",), ("c.o.l", "c.x.y"))
TICK = 0.001


@dataclass(slots=True)
class FilterRow:
    """`sluice.filter`, and what control carries out. `walk_after`, `prune_after`: the last DID; None: it is done."""

    filter: Filter = EVERYTHING
    widened_at: float | None = None
    walk_after: str | None = None
    prune_after: str | None = None
    prune_version: int | None = None
    rules: dict[bool, Any] = field(default_factory=dict)  # by `replayed`, for the filter of today

    @property
    def resting(self) -> bool:
        """Whether everything is carried out."""
        return self.walk_after is None and self.prune_after is None

    def keeps(self, rkey: str) -> bool:
        return self.filter.keeps(COLLECTIONS[rkey])

    def kept(self, records: Mapping[str, str]) -> dict[str, str]:
        """rkey → cid of what the filter lets in."""
        return {rkey: cid for rkey, cid in records.items() if self.keeps(rkey)}

    def awaits(self, row: Any) -> bool:
        """Whether this repo in sync was completed under a narrower filter, and the walk will come to it."""
        return self.walk_after is not None and row.repo.did > self.walk_after and self.older(row)

    def older(self, row: Any) -> bool:
        return self.widened_at is not None and row.completed_at < self.widened_at

    def set(self, collections: Iterable[str], now: float) -> None:
        """control.filter_changes.change."""
        chosen, before = tuple(collections), self.filter
        clean = before.clean and covers(chosen, before.collections)
        if not covers(before.collections, chosen):
            self.widened_at = now
        self.filter = Filter(before.version + 1, chosen, clean=clean)
        self.walk_after, self.prune_after = "", None
        self.rules.clear()

    def prune(self) -> None:
        """control.filter_changes.prune."""
        self.prune_after, self.prune_version = "", self.filter.version

    def pruned(self, after: str | None) -> None:
        self.prune_after = after
        if after is None:
            self.filter = replace(self.filter, clean=self.filter.version == self.prune_version)
            self.rules.clear()
