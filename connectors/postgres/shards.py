"""The databases of the repos. A repo belongs to the shard of its partition; everything else is in the main database.

Without SLUICE_SHARDS there is one shard: the main database. No transaction spans two databases. Where a step writes to both, it
first writes what may be repeated, then the marker (offset, cursor, checkpoint) that says that it is done.

Work on several shards runs at the same time, in a thread for each piece. A caller that can do without a shard waits SLOW_SECONDS for
it; then the others' results count, and the shard counts as unavailable until that work has ended.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from math import inf
from typing import Generic, TypeVar

from connectors.postgres import shard_identity
from connectors.postgres.main_database import SILENT, MainUnavailable, is_silent
from connectors.runtime import watchdog
from connectors.runtime.retry_database import RetriedForever, retry_database
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
SLOW_SECONDS = 10.0
WAIT_STEP_SECONDS = 0.5

log = logging.getLogger("shards")


class ShardUnavailable(RetriedForever):
    """One of several shards does not answer, did not a moment ago, or still works on something else."""


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
        self._late: dict[int, Future[object]] = {}  # work that nobody waits for any more

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
        return self.gather({number: work}, inf, all_needed=True)[number]

    def gather(
        self, works: Mapping[int, Callable[[X], Y]], seconds: float | None = None, *, all_needed: bool = False
    ) -> dict[int, Y]:
        """The results of work on several shards at the same time, without those that do not answer within `seconds` (SLOW_SECONDS).

        Other errors are raised when all have ended; with `all_needed`, ShardUnavailable too.
        """
        if not self._ranges:
            return {number: work(self._all[number]) for number, work in works.items()}
        begun = {number: self._begun(number, work) for number, work in works.items()}
        until = time.monotonic() + (SLOW_SECONDS if seconds is None else seconds)
        results: dict[int, Y] = {}
        errors: list[BaseException] = []
        for number, future in begun.items():
            if not _ended(future, until):
                log.warning("a shard is slow; it is left alone until it answers", extra={"shard": self.names[number]})
                self._late[number] = future  # type: ignore[assignment]
            elif error := future.exception():
                errors += [error] if all_needed or not isinstance(error, ShardUnavailable) else []
            else:
                results[number] = future.result(0)
        if errors:
            raise errors[0]
        return results

    def _begun(self, number: int, work: Callable[[X], Y]) -> "Future[Y]":
        """The work, in a thread. An error of work that nobody has waited for becomes this one's."""
        future: Future[Y] = Future()
        if self.resting(number):
            future.set_exception(ShardUnavailable(f"shard {self.names[number]} did not answer a moment ago"))
        else:
            late = self._late.pop(number, None)
            error = None if late is None else late.exception()
            if error is not None and not isinstance(error, (ShardUnavailable, MainUnavailable)):
                future.set_exception(error)
            else:
                run = partial(_run, future, partial(self._tried, work, number))
                threading.Thread(target=run, name=f"shard {self.names[number]}", daemon=True).start()
        return future

    def _tried(self, work: Callable[[X], Y], number: int) -> Y:
        try:
            shard_identity.check(self._settings, number)
            result = retry_database(lambda: work(self._all[number]), seconds=CONFLICT_SECONDS)
        except SILENT as err:
            if isinstance(err, MainUnavailable) or not is_silent(err):
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
        late = self._late.get(number)
        return (late is not None and not late.done()) or time.monotonic() < self._rest_until[number]

    def silent(self) -> list[str]:
        """Names of the shards that did not answer."""
        return [name for number, name in enumerate(self.names) if self.resting(number)]

    def answering(self, work: Callable[[X], Y], seconds: float | None = None) -> list[Y]:
        """The results of the shards that answer within `seconds` (SLOW_SECONDS), perhaps of none."""
        return list(self.gather(dict.fromkeys(range(len(self._all)), work), seconds).values())

    def each(self, work: Callable[[X], Y]) -> list[Y]:
        """The results of the shards that answer. Raises ShardUnavailable if none does."""
        if not (results := self.answering(work)):
            raise ShardUnavailable("no shard answers")
        return results

    def every(self, work: Callable[[X], Y]) -> list[Y]:
        """The results of all shards. Raises psycopg.Error."""
        return list(self.gather(dict.fromkeys(range(len(self._all)), work), inf, all_needed=True).values())

    def by_repo(
        self,
        items: Iterable[Item],
        did: Callable[[Item], str],
        work: Callable[[X, list[Item]], Y],
        *,
        lenient: bool = False,
    ) -> list[Y]:
        """The results of `work` on each shard with its items. `lenient`: without the shards that do not answer."""
        works = {number: partial(_swapped, work, some) for number, some in self.split(items, did).items()}
        return list(self.gather(works, None if lenient else inf, all_needed=not lenient).values())


def _run(future: "Future[Y]", work: Callable[[], Y]) -> None:
    try:
        with watchdog.watched(threading.current_thread().name):
            future.set_result(work())
    except BaseException as err:  # the caller raises it
        future.set_exception(err)


def _ended(future: "Future[Y]", until: float) -> bool:
    """Wait for work. False if it has not ended at `until`."""
    while not future.done() and (left := until - time.monotonic()) > 0:
        watchdog.mark()
        wait([future], min(WAIT_STEP_SECONDS, left))
    return future.done()


def _swapped(work: Callable[[X, list[Item]], Y], some: list[Item], shard: X) -> Y:
    return work(shard, some)


def with_main(settings: Settings, make: Callable[[Settings], X]) -> tuple[X, Shards[X]]:
    """The main database's X, and that of each shard: the same one without SLUICE_SHARDS."""
    main = make(settings)
    return main, Shards(settings, make if settings.shards else lambda _: main)
