"""The storm breaker: mass refetches for one reason are held until an operator decides (H7).

Some reasons to fetch a repo again may be false for all repos at once: a listing that is wrong or ahead of a lagging stream, a relay
that corrupts every commit, an account event for every account. Each refetch costs a download, and the repo gets no live updates
until it is done. So the scheduler counts before it queues repos again: if one reason would queue more than `STORM_SHARE` of all
repos (and at least `STORM_LEAST`) within an hour, including the last hour, that reason is held. Its repos are queued again when
their number is below the limit (the cause is gone), or when an operator releases it (`sluice storms release REASON`).

First fetches, and refetches that operators and jobs request, never count as a storm.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable

from connectors.postgres.connection import outside_transaction, own_transaction, tuple_database
from connectors.postgres.shards import with_main
from connectors.runtime import metrics
from schemas.settings import Settings
from schemas.sql import queries
from steps.gate.model import Reason

STORM_SHARE = 0.03
STORM_LEAST = 1000
CHECK_SECONDS = 10.0
RELEASE_HOURS = 24
LOST_EVENT = "lost_event"
REASONS = (
    *(LOST_EVENT, "audit", "reopened", Reason.DESYNC, Reason.OVERFLOW, Reason.INCOMPLETE, Reason.ACCOUNT_CHANGED),
    *(Reason.REACTIVATED, Reason.DELETION),
)
"""Reasons of automatic refetches."""

SQL = queries("storms")

logger = logging.getLogger("control")


class Storms:
    """Which reasons are held. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._database, self._shards = with_main(settings, lambda one: tuple_database(one, "sluice storms"))
        self._held: dict[str, int] = {}
        self._check_at = 0.0

    def held(self, lost_events: int | None = None, *, now: bool = False) -> frozenset[str]:
        """The reasons that are held. Recomputed every ten seconds, or `now`.

        `lost_events`: repos to be queued for `LOST_EVENT`, besides those already due. Without it, that reason keeps its state.
        """
        if now or time.monotonic() >= self._check_at:
            self._check(lost_events)
            self._check_at = time.monotonic() + CHECK_SECONDS
        return frozenset(self._held)

    def most(self) -> int:
        """How many repos one reason may queue in an hour."""
        counts = self._shards.each(lambda shard: outside_transaction(shard()).execute(SQL["repos"]).fetchone())
        return max(STORM_LEAST, int(STORM_SHARE * sum(count for (count,) in filter(None, counts))))

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
        for shard in self._shards.all():
            shard.close()

    def count(self, reasons: Iterable[str | None]) -> None:
        """Count repos that were queued, by reason."""
        counted = Counter(reason for reason in reasons if reason in REASONS)
        if counted:
            values = {"reasons": list(counted), "counts": list(counted.values())}
            outside_transaction(self._database()).execute(SQL["count"], values)

    def _check(self, lost_events: int | None) -> None:
        most, db = self.most(), self._database()
        decided = [reason for reason in REASONS if reason != LOST_EVENT or lost_events is not None]
        values = {"reasons": decided, "most": 2 * most}
        waiting: Counter[str] = Counter()
        for rows in self._shards.each(lambda shard: shard().execute(SQL["waiting"], values).fetchall()):
            waiting.update(dict(rows))
        with own_transaction(db):
            waiting[LOST_EVENT] += lost_events or 0
            queued: dict[str, int] = dict(db.execute(SQL["queued"]).fetchall())
            released = {row[0] for row in db.execute(SQL["released"])}
            held = {
                reason: count
                for reason, count in waiting.items()
                if count and count + queued.get(reason, 0) > most and reason not in released
            }
            db.execute(SQL["hold"], {"reasons": list(held), "counts": list(held.values()), "decided": decided})
            if lost_events is None:
                held |= dict(db.execute(SQL["holds"], {"reason": LOST_EVENT}).fetchall())
        for reason, count in held.items():
            if reason not in self._held:
                logger.error(
                    "storm of refetches: held until the cause is gone, or `sluice storms release`",
                    extra={"reason": reason, "waiting": count, "most_in_an_hour": most},
                )
        for reason in REASONS:
            metrics.STORM_REPOS.labels(reason).set(held.get(reason, 0))
        self._held = held


def listed(settings: Settings) -> list[dict[str, object]]:
    """Reasons that are held or released, for `sluice storms list`."""
    database = tuple_database(settings, "sluice storms")
    try:
        rows = outside_transaction(database()).execute(SQL["list"]).fetchall()
    finally:
        database.close()
    names = ("reason", "repos", "began_at", "released_until")
    return [dict(zip(names, row, strict=True)) for row in rows]


def release(settings: Settings, reason: str) -> bool:
    """Release a held reason for a day. False if it is not held."""
    database = tuple_database(settings, "sluice storms")
    try:
        cursor = outside_transaction(database()).execute(SQL["release"], {"reason": reason, "hours": RELEASE_HOURS})
        return cursor.rowcount > 0
    finally:
        database.close()
