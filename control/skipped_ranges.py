"""`sluice skipped fill`: ranges that listings stepped over become due at once. list_repos reads them; see flows/list_repos/gap_recovery.py."""

from collections.abc import Sequence

from connectors.postgres.connection import connect
from flows.list_repos.gap_recovery import ASK_PDSES_AFTER
from schemas.settings import Settings
from schemas.sql import queries


def fill_now(settings: Settings, ids: Sequence[int] | None) -> list[int]:
    """Make these open ranges (None: all) due, also at the PDSes; the ids of those that are."""
    values = {"ids": None if ids is None else list(ids), "tries": ASK_PDSES_AFTER}
    with connect(settings.database, "sluice skipped") as db:
        return [int(row[0]) for row in db.execute(queries("listing")["fill_now"], values)]
