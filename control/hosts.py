"""`sluice hosts`: PDSes that are paused, limited or failing, and an operator's way to end a pause.

Workers notice within `connectors.atproto.rate_budget.PAUSE_CHECK_SECONDS`; repos that waited for the end of the pause are due at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.postgres.connection import connect
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("budget")


@dataclass(frozen=True, slots=True)
class Cleared:
    """The hosts whose pause and limit are gone, and how many of their repos are due now."""

    hosts: list[str]
    repos: int


def clear(settings: Settings, hosts: Sequence[str]) -> Cleared:
    """End the pauses of these hosts, and forget the limits that they named. Raises OperatorError for one that is not known."""
    names = sorted({_origin(host) for host in hosts})
    with connect(settings.database, "sluice hosts") as db:
        known = {row[0] for row in db.execute(SQL["known_hosts"], {"hosts": names})}
        unknown = sorted(set(names) - known)
        if unknown:
            raise OperatorError(
                f"not known: {', '.join(unknown[:5])}; `sluice hosts list` shows those that are paused or failing"
            )
        # one statement after the other: together they would lock repos and hosts at the same time
        db.execute(SQL["clear_pauses"], {"hosts": names})
        repos = db.execute(SQL["due_after_pause"], {"hosts": names}).rowcount
    return Cleared(names, repos)


def _origin(host: str) -> str:
    return host.rstrip("/") if "://" in host else f"https://{host.rstrip('/')}"
