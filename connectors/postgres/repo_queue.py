"""The rows of `sluice.repo` as a work queue: discover, queue, claim, release, reap.

Each method is one short transaction on the RepoQueue's connection (`discover`, `lost_candidates`: several). All times are the
database's. Rows are locked in DID order, as everywhere. To leave the phase `backfill`, one statement locks the row and a
second one deletes the buffered events: being later, it also sees events that the index buffered while the first one waited.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from connectors.postgres.connection import STATEMENT_SECONDS, outside_transaction, own_transaction, tuple_database
from connectors.postgres.main_database import MainDatabase
from protocol.account_status import TAKEN_DOWN, status_beside
from schemas import wire
from schemas.settings import Settings
from schemas.sql import Statement, queries
from schemas.topics import FIREHOSE_BACKFILL

SQL = queries("repo")
REOPEN_SECONDS = 3600.0
CLOCKS_SECONDS = 1.0  # by which the clocks of two database servers may differ
FOREVER = 32_503_680_000.0  # a Unix time of the year 3000
STALE_GRACE_SECONDS = 600.0
UNCOUNTED_SECONDS = 86_400.0
ON_THE_WAY = ("pending", "backfill")


@dataclass(frozen=True, slots=True)
class ListedRepo:
    """One repo of a listRepos page. `rev`: '' if missing; `host`: the PDS, if the page is from a PDS."""

    did: str
    rev: str = ""
    active: bool = True
    status: str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Discovery:
    """Result of a page: tasks to queue, and the numbers of new and known repos."""

    tasks: list[wire.RepoTask]
    new: int
    known: int


@dataclass(frozen=True, slots=True)
class Claim:
    """An exclusive lease on a repo, for one attempt to fetch it."""

    did: str
    attempt: int
    min_rev: str
    host: str | None
    reason: str | None
    account_time: str
    account_seq: int
    retry_count: int
    account_relay: str = ""
    account_seen: str = ""


@dataclass(frozen=True, slots=True)
class Repair:
    """Repos that an audit found wrong. `left`: DID → why neither this repair nor a queued fetch fixes it."""

    repaired: list[str]
    queued: list[str]
    left: dict[str, str]


def repair(db: Connection[tuple[Any, ...]], dids: Sequence[str]) -> Repair:
    """Queue these repos for a fetch in the caller's transaction, which holds their locks until its end."""
    rows = db.execute(SQL["audit_repair"], {"dids": sorted(set(dids))}).fetchall()
    found = {did: (phase, reason) for did, phase, reason in rows}
    left = {did: f"{phase} ({reason})" for did, (phase, reason) in found.items() if phase not in ("sync", *ON_THE_WAY)}
    left |= dict.fromkeys(sorted(set(dids) - found.keys()), "it has no row")
    return Repair(
        [did for did, (phase, _) in found.items() if phase == "sync"],
        [did for did, (phase, _) in found.items() if phase in ON_THE_WAY],
        left,
    )


def end_attempts(
    db: Connection[Any], dids: Sequence[str], outcome: str, error: str | None, uncounted_seconds: float | None = None
) -> None:
    """Write the history of attempts that end alike, in the caller's transaction, which holds the locks of their repos."""
    count = len(dids)
    values = {"dids": dids, "hosts": [None] * count, "outcomes": [outcome] * count, "errors": [error] * count}
    db.execute(SQL["end_attempts"], values | {"uncounted_seconds": uncounted_seconds})


class RepoQueue:
    """Transactions on `sluice.repo`. Connects on first use, and reconnects."""

    def __init__(
        self, settings: Settings, statement_seconds: float = STATEMENT_SECONDS, main: Settings | None = None
    ) -> None:
        """`main`: settings of the main database, if `settings` are a shard's."""
        self._settings = settings
        self._database = tuple_database(settings, "sluice repos", statement_seconds=statement_seconds)
        self._main = MainDatabase(main, self._database, "sluice repos")

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
        self._main.close()

    def _db(self) -> Connection[tuple[Any, ...]]:
        """The connection, outside any transaction. Raises NestedTransaction."""
        return outside_transaction(self._database())

    def discover(self, listed: Sequence[ListedRepo], job: int | None = None, asked_at: float = FOREVER) -> Discovery:
        """Insert rows for new repos, and update known ones from the listing. Commits before it returns.

        `asked_at`: Unix time of the listing's request. Each statement is its own transaction: in one, locks would be taken out of
        DID order and could deadlock with the index.
        """
        unique = list({entry.did: entry for entry in listed}.values())
        values: dict[str, Any] = {
            "dids": [entry.did for entry in unique],
            "hosts": [entry.host for entry in unique],
            "revs": [entry.rev for entry in unique],
            "actives": [entry.active for entry in unique],
            "statuses": [status_beside(entry.active, entry.status) for entry in unique],
            "job": job,
            "collection": None if job is None else self._collection_of(job),
            "pdses": self._pdses(unique),
            "reopen": REOPEN_SECONDS,
            "final": sorted(TAKEN_DOWN),
            "asked_at": asked_at - CLOCKS_SECONDS,
        }
        rows = self._db().execute(SQL["discover"], values).fetchall()
        if len(rows) < len(unique):
            if any(entry.status in TAKEN_DOWN for entry in unique):
                self._take_down(values)
            for name in ("listed_closes", "listed_ahead", "listed_raises", "listed_reopens"):
                self._db().execute(SQL[name], values)
        tasks = [
            wire.RepoTask(did=did, attempt=attempt, reason="listed", host=host, rev=rev or None, job=job)
            for did, attempt, host, rev, phase in rows
            if phase == "pending"
        ]
        return Discovery(tasks, len(rows), len(listed) - len(rows))

    def _collection_of(self, job: int) -> str | None:
        row = self._main.execute(SQL["job_collection"], {"job": job}).fetchone()
        found: str | None = row[0] if row else None
        return found

    def _pdses(self, listed: Sequence[ListedRepo]) -> list[str | None]:
        """For repos that a PDS lists: the PDS of the DID document, if that was resolved."""
        dids = [entry.did for entry in listed if entry.host is not None]
        known: dict[str, str | None] = dict(self._main.execute(SQL["pdses"], {"dids": dids}).fetchall()) if dids else {}
        return [known.get(entry.did) for entry in listed]

    def read(self, statement: Statement, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Rows of a statement about repos. With several shards: of all of them together."""
        return self._db().execute(statement, values).fetchall()

    def note_ahead(self, revs: Mapping[str, str]) -> None:
        """`revs`: DID → rev at its PDS. A rev above ours is recorded as a lost event, as from a listing."""
        dids = sorted(revs)
        self._db().execute(SQL["listed_ahead"], {"dids": dids, "revs": [revs[did] for did in dids]})

    def _take_down(self, values: dict[str, Any]) -> None:
        db = self._db()
        with own_transaction(db):
            dids = [row[0] for row in db.execute(SQL["lock_taken_down"], values)]
            if dids:
                db.execute(SQL["drop_buffered"], {"dids": dids})
                end_attempts(db, dids, "unavailable", "taken down")
                db.execute(SQL["take_down"], values | {"taken_down": dids})

    def claim(self, tasks: Sequence[wire.RepoTask], worker: str) -> list[Claim]:
        """Claim the repos of these tasks. Repos that another worker claimed, or that are done, are missing in the result."""
        values = {
            "dids": [task.did for task in tasks],
            "attempts": [task.attempt for task in tasks],
            "lease": self._settings.tuning.lease_seconds,
            "worker": worker,
            "hourly": self._settings.tuning.resyncs_per_repo_hour,
        }
        return [Claim(*row) for row in self._db().execute(SQL["claim"], values)]

    def renew(self, worker: str, claims: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
        """Renew leases. `claims`, and those of them that this worker still holds: (did, attempt)."""
        values = {"dids": [did for did, _ in claims], "worker": worker, "lease": self._settings.tuning.lease_seconds}
        return {(did, attempt) for did, attempt in self._db().execute(SQL["renew"], values)}

    def produced(self, outcomes: Sequence[tuple[str, int, int, int]]) -> None:
        """Store the log positions of acknowledged outcomes: (did, attempt, partition, offset)."""
        dids, attempts, parts, offsets = (list(column) for column in zip(*outcomes, strict=True))
        values = {"dids": dids, "attempts": attempts, "parts": parts, "offsets": offsets}
        self._db().execute(SQL["produced"], values)

    def retry(
        self,
        did: str,
        attempt: int,
        error: str,
        delay_seconds: float,
        *,
        counted: bool = True,
        last: bool = False,
        uncounted_seconds: float = UNCOUNTED_SECONDS,
        growing: bool = False,
    ) -> str | None:
        """Release a claim with its error. Returns 'pending', or 'failed' after the last counted attempt; None: not our claim.

        `last`: a further attempt would fail the same way. `uncounted_seconds`: after so long without a counted attempt this one
        is counted. `growing`: wait at least half of the time since the first uncounted attempt, up to an hour.
        """
        ours = {"dids": [did], "attempts": [attempt], "uncounted_seconds": uncounted_seconds, "growing": growing}
        return self._leave("lock_claims", ours, error, delay_seconds, counted=counted, last=last).get(did)

    def release_all(self, worker: str) -> int:
        """Release all claims of a stopping worker, uncounted and due immediately. Returns their number."""
        return len(self._leave("lock_worker", {"worker": worker}, None, 0.0, counted=False))

    def reap(self, cluster: str, delay_seconds: float, limit: int = 1000) -> dict[str, str]:
        """Release expired claims, and claims still open after the index passed their outcome. Returns DID → new phase."""
        values = {
            "cluster": cluster,
            "group": self._settings.group("index"),
            "topic": self._settings.topic(FIREHOSE_BACKFILL),
            "limit": limit,
        }
        why = "lease expired, or the outcome did not close the attempt"
        return self._leave("lock_expired", values, why, delay_seconds, counted=True)

    def stale(self, did: str, attempt: int, grace_seconds: float = STALE_GRACE_SECONDS) -> str | None:
        """Record a snapshot below min_rev. Returns the next min_rev, lowered after `grace_seconds`; None: not our claim."""
        values = {"did": did, "attempt": attempt, "grace": grace_seconds}
        row = self._db().execute(SQL["stale"], values).fetchone()
        return None if row is None else str(row[0])

    def refetch(self, did: str, attempt: int) -> bool:
        """Whether this claim, whose snapshot was stale, may fetch again within the hourly limit. Counts the fetch."""
        values = {"did": did, "attempt": attempt, "hourly": self._settings.tuning.resyncs_per_repo_hour}
        return self._db().execute(SQL["refetch"], values).fetchone() is not None

    def now(self) -> float:
        """Unix time in seconds, by the database's clock."""
        row = self._db().execute(queries("control")["now"]).fetchone()
        return float(row[0]) if row else 0.0

    def restoring(self) -> bool:
        """Whether the database was restored, and the index has yet to read the log (control/tasks/restored.py)."""
        return self._db().execute(queries("restore")["restoring"]).fetchone() is not None

    def due(self, limit: int, held: Collection[str] = ()) -> list[wire.RepoTask]:
        """Tasks of due pending repos, marked as queued: the caller must produce them. First fetches have attempt 0.

        Repos at their hourly limit (`resyncs_per_repo_hour`), or whose reason is in `held`, are deferred instead.
        """
        values = {"limit": limit, "hourly": self._settings.tuning.resyncs_per_repo_hour, "held": list(held)}
        rows = self._db().execute(SQL["due"], values)
        return [
            wire.RepoTask(
                did=did,
                attempt=attempt,
                reason=reason or "due",
                rev=rev or None,
                host=host,
                active=active,
                status=status,
                job=job,
            )
            for did, attempt, reason, rev, host, active, status, job in rows
        ]

    def queued_long(self, before: float, limit: int) -> list[tuple[str, int, float]]:
        """(did, attempt, Unix time of queueing) of pending repos that were queued before `before` and not claimed."""
        rows = self._db().execute(SQL["queued_long"], {"before": before, "limit": limit})
        return [(did, attempt, float(at)) for did, attempt, at in rows]

    def unqueue(self, dids: Sequence[str]) -> None:
        """Mark repos whose messages no longer exist as not queued, so that control queues them again."""
        self._db().execute(SQL["unqueue"], {"dids": list(dids)})

    def lost_candidates(self, grace_seconds: float, limit: int, settled: float = FOREVER) -> int:
        """Number of repos that `lost_events` would find, up to `limit`. Clears those that have caught up."""
        values = {"grace": grace_seconds, "settled": settled, "limit": limit}
        self._db().execute(SQL["caught_up"], values)
        row = self._db().execute(SQL["lost_candidates"], values).fetchone()
        return 0 if row is None else int(row[0])

    def lost_events(self, grace_seconds: float, settled: float = FOREVER, limit: int = 1000) -> list[str]:
        """Make repos pending whose listed rev stayed above ours. Returns their DIDs. Clears those that have caught up.

        `settled`: Unix time up to which all stream events are indexed.
        """
        db = self._db()
        values = {"grace": grace_seconds, "settled": settled, "limit": limit}
        with own_transaction(db):
            db.execute(SQL["caught_up"], values)
            rows = db.execute(SQL["lost_events"], values).fetchall()
        return [row[0] for row in rows]

    def retry_failed(self, dids: Sequence[str] | None) -> list[str]:
        """Make failed repos (all, or these) pending, with all retry fields reset. Returns their DIDs."""
        values = {"dids": None if dids is None else list(dids)}
        return [row[0] for row in self._db().execute(SQL["retry_failed"], values)]

    def fetch_again(self, dids: Sequence[str], job: int) -> None:
        """Make repos in `sync` or `failed` pending, for this job; once per repo and job."""
        self._db().execute(SQL["fetch_again"], {"dids": list(dids), "job": job})

    def phases(self) -> dict[str, int]:
        """Number of repos in each phase."""
        return dict(self._db().execute(SQL["phases"]).fetchall())

    def _leave(
        self,
        lock: str,
        values: dict[str, Any],
        error: str | None,
        delay_seconds: float,
        *,
        counted: bool,
        last: bool = False,
    ) -> dict[str, str]:
        db = self._db()
        with own_transaction(db):
            dids = [row[0] for row in db.execute(SQL[lock], values)]
            if not dids:
                return {}
            db.execute(SQL["drop_buffered"], {"dids": dids})
            seconds = values.get("uncounted_seconds", UNCOUNTED_SECONDS)
            end_attempts(db, dids, "failed" if counted else "deferred" if error else "released", error, seconds)
            reopen = {
                "uncounted_seconds": seconds,
                "growing": values.get("growing", False),
                "dids": dids,
                "delays": [delay_seconds] * len(dids),
                "error": error,
                "counted": counted,
                "max_attempts": 1 if last else self._settings.backfill_max_attempts,
            }
            return dict(db.execute(SQL["reopen"], reopen).fetchall())
