"""`sluice hosts clear`: end the pause of a PDS.

It takes effect within `connectors.atproto.rate_budget.PAUSE_CHECK_SECONDS`. Repos deferred to the end of the pause are due at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.postgres.connection import connect
from connectors.postgres.shards import Shards
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("budget")


@dataclass(frozen=True, slots=True)
class Cleared:
    """The hosts whose pause and limit were removed, and how many of their repos are due now."""

    hosts: list[str]
    repos: int


def clear(settings: Settings, hosts: Sequence[str]) -> Cleared:
    """End the pauses of these hosts, and remove the limits that they announced. Raises OperatorError for an unknown host."""
    names = sorted({_origin(host) for host in hosts})
    with connect(settings.database, "sluice hosts") as db:
        known = {row[0] for row in db.execute(SQL["known_hosts"], {"hosts": names})}
        unknown = sorted(set(names) - known)
        if unknown:
            raise OperatorError(
                f"unknown hosts: {', '.join(unknown[:5])}; `sluice hosts list` shows those that are paused or failing"
            )
        # not in one transaction with the repos: it would lock repos and hosts at the same time
        db.execute(SQL["clear_pauses"], {"hosts": names})
    shards = Shards(settings, lambda one: one.database)
    return Cleared(names, sum(shards.every(lambda url: _due(url, names))))


def _due(url: str, hosts: Sequence[str]) -> int:
    with connect(url, "sluice hosts") as db:
        return db.execute(SQL["due_after_pause"], {"hosts": hosts}).rowcount


def _origin(host: str) -> str:
    return host.rstrip("/") if "://" in host else f"https://{host.rstrip('/')}"
