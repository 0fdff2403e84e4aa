"""`repo_queue(settings)`: the RepoQueue of one database, or one over all shards.

A worker whose shard does not answer goes on with the others. What it could not do there counts as not done: tasks that it could
not claim are queued again (control's `requeue`), claims that it could not close expire. Listings and commands need all shards.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

from typing_extensions import override

from connectors.postgres.connection import STATEMENT_SECONDS
from connectors.postgres.repo_queue import FOREVER, STALE_GRACE_SECONDS, Claim, Discovery, ListedRepo, RepoQueue
from connectors.postgres.shards import Shards, ShardUnavailable
from schemas import wire
from schemas.settings import Settings
from schemas.sql import Statement

Y = TypeVar("Y")


def repo_queue(settings: Settings, statement_seconds: float = STATEMENT_SECONDS) -> RepoQueue:
    """The queue of all repos."""
    return ShardedQueue(settings, statement_seconds) if settings.shards else RepoQueue(settings, statement_seconds)


class ShardedQueue(RepoQueue):
    """One RepoQueue for each shard."""

    def __init__(self, settings: Settings, statement_seconds: float = STATEMENT_SECONDS) -> None:
        super().__init__(settings, statement_seconds)  # for `now`
        self._shards = Shards(settings, lambda one: RepoQueue(one, statement_seconds, main=settings))

    @override
    def close(self) -> None:
        super().close()
        for queue in self._shards.all():
            queue.close()

    # of a worker: without the shards that do not answer

    def _unless_down(self, did: str, work: Callable[[RepoQueue], Y], otherwise: Y) -> Y:
        try:
            return self._shards.call(self._shards.number_of(did), work)
        except ShardUnavailable:
            return otherwise

    @override
    def claim(self, tasks: Sequence[wire.RepoTask], worker: str) -> list[Claim]:
        found = self._shards.by_repo(
            tasks, lambda task: task.did, lambda queue, some: queue.claim(some, worker), lenient=True
        )
        return list(chain(*found))

    @override
    def renew(self, worker: str, claims: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        """Claims on a shard that does not answer count as held: no other worker can claim their repos either."""
        held: set[tuple[str, int]] = set()
        for number, some in self._shards.split(claims, itemgetter(0)).items():
            try:
                held |= self._shards.call(number, lambda queue, some=some: queue.renew(worker, some))  # type: ignore[misc]
            except ShardUnavailable:
                held |= set(some)
        return held

    @override
    def produced(self, outcomes: Sequence[tuple[str, int, int, int]]) -> None:
        self._shards.by_repo(outcomes, lambda one: one[0], lambda queue, some: queue.produced(some), lenient=True)

    @override
    def retry(self, did: str, attempt: int, error: str, delay_seconds: float, **options: Any) -> str | None:
        return self._unless_down(did, lambda queue: queue.retry(did, attempt, error, delay_seconds, **options), None)

    @override
    def release_all(self, worker: str) -> int:
        return sum(self._shards.each(lambda queue: queue.release_all(worker)))

    @override
    def stale(self, did: str, attempt: int, grace_seconds: float = STALE_GRACE_SECONDS) -> str | None:
        return self._unless_down(did, lambda queue: queue.stale(did, attempt, grace_seconds), None)

    @override
    def refetch(self, did: str, attempt: int) -> bool:
        return self._unless_down(did, lambda queue: queue.refetch(did, attempt), otherwise=False)

    # of control: without the shards that do not answer, or wait after a restore for the index to read the log

    def _scheduled(self, work: Callable[[RepoQueue], Y]) -> list[Y]:
        return list(chain(*self._shards.each(lambda queue: [] if queue.restoring() else [work(queue)])))

    @override
    def reap(self, cluster: str, delay_seconds: float, limit: int = 1000) -> dict[str, str]:
        found = self._scheduled(lambda queue: queue.reap(cluster, delay_seconds, limit))
        return {did: phase for some in found for did, phase in some.items()}

    @override
    def due(self, limit: int, held: Collection[str] = ()) -> list[wire.RepoTask]:
        return list(chain(*self._scheduled(lambda queue: queue.due(limit, held))))

    @override
    def queued_long(self, before: float, limit: int) -> list[tuple[str, int, float]]:
        return list(chain(*self._scheduled(lambda queue: queue.queued_long(before, limit))))

    @override
    def unqueue(self, dids: Sequence[str]) -> None:
        self._shards.by_repo(dids, str, lambda queue, some: queue.unqueue(some), lenient=True)

    @override
    def lost_candidates(self, grace_seconds: float, limit: int, settled: float = FOREVER) -> int:
        return sum(self._scheduled(lambda queue: queue.lost_candidates(grace_seconds, limit, settled)))

    @override
    def lost_events(self, grace_seconds: float, settled: float = FOREVER, limit: int = 1000) -> list[str]:
        return list(chain(*self._scheduled(lambda queue: queue.lost_events(grace_seconds, settled, limit))))

    # of listings and commands: all shards must answer; the caller repeats the whole

    @override
    def discover(self, listed: Sequence[ListedRepo], job: int | None = None, asked_at: float = FOREVER) -> Discovery:
        found = self._shards.by_repo(
            listed, lambda one: one.did, lambda queue, some: queue.discover(some, job, asked_at)
        )
        tasks = [task for one in found for task in one.tasks]
        return Discovery(tasks, sum(one.new for one in found), sum(one.known for one in found))

    @override
    def note_ahead(self, revs: Mapping[str, str]) -> None:
        self._shards.by_repo(revs, str, lambda queue, some: queue.note_ahead({did: revs[did] for did in some}))

    @override
    def retry_failed(self, dids: Sequence[str] | None) -> list[str]:
        if dids is None:
            return list(chain(*self._shards.every(lambda queue: queue.retry_failed(None))))
        return list(chain(*self._shards.by_repo(dids, str, lambda queue, some: queue.retry_failed(some))))

    @override
    def fetch_again(self, dids: Sequence[str], job: int) -> None:
        self._shards.by_repo(dids, str, lambda queue, some: queue.fetch_again(some, job))

    @override
    def read(self, statement: Statement, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return list(chain(*self._shards.every(lambda queue: queue.read(statement, values))))

    @override
    def phases(self) -> dict[str, int]:
        return dict(sum(map(Counter, self._shards.every(lambda queue: queue.phases())), Counter[str]()))
