"""Dead letters of commits that are too big for their frame and lack the signed block: check each account once with its PDS.

Such a frame proves nothing, but if it was the account's last one the repo would be out of date until the next listing. So its dead
letter is checked once: if its rev is above the newest one seen, the account's PDS is queried for its latest commit. A rev above
ours is recorded like one from a listing: after a grace period it counts as a lost event, also for the storm breaker. Anyone can
send such frames, so a round covers at most `ROUND_DIDS` accounts and `ASK_SECONDS`, with the HTTP session and the host budgets of
an audit. A letter whose PDS did not answer stays open.
"""

import asyncio
import time
from collections.abc import Sequence

from connectors.atproto.repo_lookup import AuditNetwork
from connectors.postgres.connection import tuple_database
from connectors.postgres.sharded_queue import repo_queue
from protocol.syntax import FUTURE_MICROS, is_tid, tid_micros
from schemas.settings import Settings
from schemas.sql import queries

ROUND_DIDS = 30
ASK_SECONDS = 15.0
YOUNGEST_SECONDS = 15.0
"""Minimum age of a letter: another relay may deliver the commit itself."""
OLDEST_SECONDS = 3600.0

SQL = queries("dead_letter")


class BigCommits:
    """Checks the letters that are due. Connects on first use; used in one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._repos = repo_queue(settings)
        self._connection = tuple_database(settings, "sluice big commits")

    def round(self) -> dict[str, int]:
        """One round: counts of accounts whose letters are "retried" now, and still "open". Raises psycopg.OperationalError."""
        # more than ROUND_DIDS: some accounts are not in sync
        bounds = {"youngest": YOUNGEST_SECONDS, "oldest": OLDEST_SECONDS, "limit": 10 * ROUND_DIDS}
        letters = self._connection().execute(SQL["too_big_due"], bounds).fetchall()
        if not letters:
            return {"retried": 0, "open": 0}
        asked = {"dids": [did for did, _ in letters], "revs": [rev for _, rev in letters]}
        due = self._repos.read(SQL["too_big_news"], asked)[:ROUND_DIDS]
        revs = self._latest([did for did, _, news in due if news])
        if revs:
            self._repos.note_ahead(revs)
        answered = [not news or did in revs for did, _, news in due]
        values = {"dids": [did for did, _, _ in due], "revs": [rev for _, rev, _ in due], "answered": answered}
        self._connection().execute(SQL["too_big_done"], values)
        return {"retried": sum(answered), "open": len(due) - sum(answered)}

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()
        self._repos.close()

    def _latest(self, dids: Sequence[str]) -> dict[str, str]:
        """DID → the rev that its PDS has, for the PDSes that answered in time."""
        return asyncio.run(_latest(self._settings, dids)) if dids else {}


async def _latest(settings: Settings, dids: Sequence[str]) -> dict[str, str]:
    network = AuditNetwork(settings, lambda _did: None)
    found: dict[str, str] = {}

    async def ask(did: str) -> None:
        answer = await network.latest(did)
        if isinstance(answer, tuple) and _possible(answer[0]):
            found[did] = answer[0]

    try:
        async with asyncio.timeout(ASK_SECONDS), asyncio.TaskGroup() as asked:
            for did in dids:
                asked.create_task(ask(did))
    except TimeoutError:
        pass  # no answer counts as not confirmed
    finally:
        await network.close()
    return found


def _possible(rev: str) -> bool:
    """Whether this is a rev, and not one from the future."""
    return is_tid(rev) and tid_micros(rev) <= time.time_ns() // 1000 + FUTURE_MICROS
