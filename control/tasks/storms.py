"""A storm of refetches stops by itself and asks (H7).

Repos are fetched again for reasons that may be false for all of them at once: a listing that lies or is ahead of a stream that
lags, a relay that spoils every commit, an account event for everybody. Each such fetch costs a download and, until it is
done, the repo's place in the stream. So before repos are queued again, the scheduler counts: where one reason would ask for
more than `STORM_SHARE` of all repos (and at least `STORM_LEAST`) within an hour, counted with those that were queued in the
last hour, that reason is held. Nothing of it is queued until few enough wait, because the cause has gone, or an operator
lets it through (`sluice storms release REASON`).

What operators and jobs ask for, and first fetches, are no storm.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable

from connectors.postgres.connection import alone, own_transaction, tuples
from connectors.runtime import metrics
from schemas.settings import Settings
from schemas.sql import queries
from steps.gate.model import Reason

STORM_SHARE = 0.03
STORM_LEAST = 1000
LOOK_SECONDS = 10.0
RELEASE_HOURS = 24
LOST_EVENT = "lost_event"
REASONS = (
    *(LOST_EVENT, "audit", "reopened", Reason.DESYNC, Reason.OVERFLOW, Reason.INCOMPLETE, Reason.ACCOUNT_CHANGED),
    *(Reason.REACTIVATED, Reason.DELETION),
)
"""Why repos are fetched again without an operator's word."""

SQL = queries("storms")

logger = logging.getLogger("control")


class Storms:
    """Which reasons are held. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._database = tuples(settings, "sluice storms")
        self.close = self._database.close
        self._held: dict[str, int] = {}
        self._look_at = 0.0

    def held(self, lost_events: int | None = None, *, now: bool = False) -> frozenset[str]:
        """The reasons that are held. Looks every ten seconds, or `now`.

        `lost_events`: repos that would be queued for that reason beside those that wait. Only who knows it decides about it.
        """
        if now or time.monotonic() >= self._look_at:
            self._look(lost_events)
            self._look_at = time.monotonic() + LOOK_SECONDS
        return frozenset(self._held)

    def most(self) -> int:
        """How many repos one reason may ask for in an hour."""
        (count,) = alone(self._database()).execute(SQL["repos"]).fetchone() or (0,)
        return max(STORM_LEAST, int(STORM_SHARE * count))

    def count(self, reasons: Iterable[str | None]) -> None:
        """Repos that were queued, by their reasons."""
        counted = Counter(reason for reason in reasons if reason in REASONS)
        if counted:
            values = {"reasons": list(counted), "counts": list(counted.values())}
            alone(self._database()).execute(SQL["count"], values)

    def _look(self, lost_events: int | None) -> None:
        most, db = self.most(), self._database()
        decided = [reason for reason in REASONS if reason != LOST_EVENT or lost_events is not None]
        with own_transaction(db):
            values = {"reasons": decided, "most": 2 * most}
            waiting: Counter[str] = Counter(dict(db.execute(SQL["waiting"], values).fetchall()))
            waiting[LOST_EVENT] += lost_events or 0
            queued: dict[str, int] = dict(db.execute(SQL["queued"]).fetchall())
            released = {row[0] for row in db.execute(SQL["released"])}
            held = {
                reason: count
                for reason, count in waiting.items()
                if count and count + queued.get(reason, 0) > most and reason not in released
            }
            values = {"reasons": list(held), "counts": list(held.values()), "decided": decided}
            db.execute(SQL["hold"], values)
            if lost_events is None:
                held |= dict(db.execute(SQL["holds"], {"reason": LOST_EVENT}).fetchall())
        for reason, count in held.items():
            if reason not in self._held:
                logger.error(
                    "storm of refetches: held until the cause goes, or `sluice storms release`",
                    extra={"reason": reason, "waiting": count, "most_in_an_hour": most},
                )
        for reason in REASONS:
            metrics.STORM_REPOS.labels(reason).set(held.get(reason, 0))
        self._held = held


def listed(settings: Settings) -> list[dict[str, object]]:
    """Reasons that are held or let through, for the command and the status."""
    database = tuples(settings, "sluice storms")
    try:
        rows = alone(database()).execute(SQL["list"]).fetchall()
    finally:
        database.close()
    names = ("reason", "repos", "began_at", "released_until")
    return [dict(zip(names, row, strict=True)) for row in rows]


def release(settings: Settings, reason: str) -> bool:
    """Let a held reason through for a day. False: it is not held."""
    database = tuples(settings, "sluice storms")
    try:
        cursor = alone(database()).execute(SQL["release"], {"reason": reason, "hours": RELEASE_HOURS})
        return cursor.rowcount > 0
    finally:
        database.close()
