"""The part of the network that is mirrored: patterns of collections, and the network boundary. Pure.

A pattern is `*` (all), an NSID (that collection), or `NSID.*` (every collection below it: `app.bsky.*` matches
`app.bsky.feed.post`, not `app.bsky` and not `app.bskyx.post`). Matching never raises, for any string.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas import wire


@dataclass(frozen=True, slots=True)
class Filter:
    """A version of the filter. `clean`: no rows outside it are left, so operations outside it need no delete."""

    version: int = 1
    collections: tuple[str, ...] = ("*",)
    boundary: str = "all"
    signal: str | None = None
    clean: bool = True
    _exact: frozenset[str] = field(init=False, compare=False, repr=False)
    _below: tuple[str, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        below = tuple(pattern[:-1] for pattern in self.collections if pattern.endswith("*"))
        object.__setattr__(self, "_below", below)
        object.__setattr__(self, "_exact", frozenset(one for one in self.collections if not one.endswith("*")))

    @property
    def everything(self) -> bool:
        return "*" in self.collections

    def keeps(self, collection: str) -> bool:
        """Whether records of this collection are written."""
        return collection in self._exact or collection.startswith(self._below)

    def lets_in(self, events: Iterable[object]) -> bool:
        """Boundary `collection`: whether one of a repo's events writes a record of the signal collection."""
        return self.boundary == "collection" and any(
            op.collection == self.signal and op.action != "delete"
            for event in events
            if isinstance(event, wire.CommitEvent)
            for op in event.ops
        )


EVERYTHING = Filter()


def covers(one: Iterable[str], other: Iterable[str]) -> bool:
    """Whether `one` keeps every collection that `other` keeps."""
    kept = Filter(collections=tuple(one))
    # only a wildcard at or above `a.b` covers `a.b.*`
    wild = Filter(collections=tuple(pattern for pattern in kept.collections if pattern.endswith("*")))
    return all(
        kept.everything or (wild.keeps(pattern) if pattern.endswith("*") else kept.keeps(pattern)) for pattern in other
    )
