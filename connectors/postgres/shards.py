"""The databases of the repos. A repo belongs to the shard of its partition; everything else is in the main database.

Without SLUICE_SHARDS there is one shard: the main database. No transaction spans two databases. Where a step writes to both, it
first writes what may be repeated, then the marker (offset, cursor, checkpoint) that says that it is done.
"""

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic, TypeVar

import psycopg

from connectors.postgres import shard_identity
from connectors.runtime.retry_database import is_transient, retry_database
from schemas.settings import Settings
from schemas.shard_ranges import shard_ranges
from steps.backoff import backoff_seconds
from steps.partitioner import partition_of

X = TypeVar("X")
Y = TypeVar("Y")
Item = TypeVar("Item")

CONFLICT_SECONDS = 1.0  # of retries in place, which end most conflicts of locks
REST_FIRST_SECONDS = 2.0
REST_LONGEST_SECONDS = 60.0
SILENT = shard_identity.SILENT

log = logging.getLogger("shards")


class ShardUnavailable(psycopg.OperationalError):
    """One of several shards does not answer, or did not a moment ago."""


def shard_settings(settings: Settings) -> list[Settings]:
    """The settings of each shard: `database` is its URL. One shard: the settings themselves."""
    ranges = shard_ranges(settings.shards)
    return [settings.model_copy(update={"database": one.url, "shards": ""}) for one in ranges] or [settings]


class Shards(Generic[X]):
    """One X for each shard, made from the shard's settings. For one thread at a time. `names`: their partitions."""

    def __init__(self, settings: Settings, make: Callable[[Settings], X]) -> None:
        self._settings = settings
        self._ranges = shard_ranges(settings.shards)
        self.names = [one.name for one in self._ranges] or [""]
        self._all = [make(one) for one in shard_settings(settings)]
        self._failures = [0] * len(self._all)
        self._rest_until = [0.0] * len(self._all)

    def all(self) -> list[X]:
        """Every shard's, in the order of their partitions."""
        return list(self._all)

    def of(self, did: str) -> X:
        """That of a repo's shard."""
        return self._all[self.number_of(did)]

    def number_of(self, did: str) -> int:
        """Number of a repo's shard, from 0."""
        return self.of_partition(partition_of(did, self._ranges[-1].last + 1)) if self._ranges else 0

    def of_partition(self, partition: int) -> int:
        """Number of the shard that a partition belongs to."""
        return next((at for at, one in enumerate(self._ranges) if partition <= one.last), len(self._all) - 1)

    def split(self, items: Iterable[Item], did: Callable[[Item], str]) -> dict[int, list[Item]]:
        """The items by the number of their repo's shard, in their order."""
        if not self._ranges:
            return {0: list(items)}
        found: dict[int, list[Item]] = {}
        for item in items:
            found.setdefault(self.number_of(did(item)), []).append(item)
        return found

    def call(self, number: int, work: Callable[[X], Y]) -> Y:
        """`work` on a shard; must be safe to repeat. One of several that does not answer rests for up to a minute.

        Raises ShardUnavailable then; without SLUICE_SHARDS what `work` raises.
        """
        shard = self._all[number]
        if not self._ranges:
            return work(shard)
        if self.resting(number):
            raise ShardUnavailable(f"shard {self.names[number]} did not answer a moment ago")
        try:
            shard_identity.check(self._settings, number)
            result = retry_database(lambda: work(shard), seconds=CONFLICT_SECONDS)
        except SILENT as err:
            if isinstance(err, psycopg.OperationalError) and not is_transient(err):
                raise
            shard_identity.forget(self._settings, number)  # another database may answer next
            self._failures[number] += 1
            rest = backoff_seconds(self._failures[number], REST_FIRST_SECONDS, REST_LONGEST_SECONDS)
            self._rest_until[number] = time.monotonic() + rest
            why = " ".join(str(err).split())[:300]
            log.warning(
                "a shard does not answer", extra={"shard": self.names[number], "error": why, "rests": round(rest)}
            )
            raise ShardUnavailable(f"shard {self.names[number]}: {why}") from err
        self._failures[number] = 0
        return result

    def resting(self, number: int) -> bool:
        """Whether `call` refuses this shard at present."""
        return time.monotonic() < self._rest_until[number]

    def silent(self) -> list[str]:
        """Names of the shards that did not answer."""
        return [name for number, name in enumerate(self.names) if self.resting(number)]

    def each(self, work: Callable[[X], Y]) -> list[Y]:
        """The results of the shards that answer. Raises psycopg.OperationalError if none does."""
        results: list[Y] = []
        missing: ShardUnavailable | None = None
        for number in range(len(self._all)):
            try:
                results.append(self.call(number, work))
            except ShardUnavailable as err:
                missing = err
        if not results and missing is not None:
            raise missing
        return results

    def every(self, work: Callable[[X], Y]) -> list[Y]:
        """The results of all shards. Raises psycopg.Error."""
        return [self.call(number, work) for number in range(len(self._all))]

    def by_repo(
        self,
        items: Iterable[Item],
        did: Callable[[Item], str],
        work: Callable[[X, list[Item]], Y],
        *,
        lenient: bool = False,
    ) -> list[Y]:
        """The results of `work` on each shard with its items. `lenient`: without the shards that do not answer."""
        results = []
        for number, some in self.split(items, did).items():
            try:
                results.append(self.call(number, partial(_swapped, work, some)))
            except ShardUnavailable:
                if not lenient:
                    raise
        return results


def _swapped(work: Callable[[X, list[Item]], Y], some: list[Item], shard: X) -> Y:
    return work(shard, some)


def with_main(settings: Settings, make: Callable[[Settings], X]) -> tuple[X, Shards[X]]:
    """The main database's X, and that of each shard: the same one without SLUICE_SHARDS."""
    main = make(settings)
    return main, Shards(settings, make if settings.shards else lambda _: main)
