"""The history of attempts: each ends as one row, in the transaction that ends it, and ten of a repo are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from connectors.postgres.repo_queue import Claim, ListedRepo, RepoQueue
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from schemas import wire
from schemas.settings import Settings
from schemas.sql import queries
from steps.gate.batch import OffsetEvent, Rules

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"


class Repo:
    """One repo, its queue and its index."""

    def __init__(self, settings: Settings) -> None:
        self.queue = RepoQueue(settings)
        self.index = IndexStore(settings, "c", None)
        self.queue.discover([ListedRepo(DID, host="https://pds.test")])
        self.db = psycopg.connect(settings.database, autocommit=True)

    def claim(self) -> Claim:
        self.db.execute("update sluice.repo set next_retry_at = now(), fetched_at = '{}'")
        attempt = self.db.execute("select attempt from sluice.repo").fetchone()
        assert attempt is not None
        (claim,) = self.queue.claim([wire.RepoTask(did=DID, attempt=attempt[0], reason="x")], "w")
        return claim

    def ends(self, event: wire.LiveEvent | wire.RepoOutcome) -> None:
        with self.index.transaction() as transaction:
            apply_events(transaction, {DID: [OffsetEvent(0, event)]}, Rules())

    def attempts(self, *columns: str) -> list[tuple[Any, ...]]:
        """As `sluice repo`, the API and the page show them, the oldest first."""
        cursor = self.db.cursor(row_factory=dict_row)
        rows = cursor.execute(queries("api")["repo_attempts"], {"did": DID, "limit": 11}).fetchall()
        return [tuple(row[name] for name in columns or ("attempt", "outcome", "error")) for row in reversed(rows)]


@pytest.fixture
def repo(database: str) -> Iterator[Repo]:
    made = Repo(Settings(database=database, backfill_max_attempts=99))
    yield made
    made.queue.close()
    made.index.close()
    made.db.close()


def outcome(attempt: int, **more: Any) -> wire.RepoOutcome:
    fields = {"rev": "3k2", "commit": "c", "data": "root", "count": 0, "host": "https://new.test"} | more
    return wire.RepoOutcome(did=DID, attempt=attempt, status="synced", active=True, time="t", **fields)


def test_each_way_to_end_is_a_row_with_its_error(repo: Repo) -> None:
    repo.queue.retry(DID, repo.claim().attempt, "HTTP 500", 0)
    repo.queue.retry(DID, repo.claim().attempt, "rate limit", 0, counted=False)
    repo.claim()
    assert repo.queue.release_all("w") == 1
    repo.claim()
    repo.db.execute("update sluice.repo set lease_until = now() - interval '1 s'")
    assert repo.queue.reap("c", 0) == {DID: "pending"}
    repo.ends(outcome(repo.claim().attempt, count=7))
    repo.ends(outcome(repo.claim().attempt))
    assert repo.attempts("attempt", "outcome", "host")[-1] == (6, "synced", "https://new.test")
    first = repo.attempts("started_at", "ended_at")[-1]
    assert all(first), "of the repo's row"
    assert repo.db.execute("select count(*) from sluice.backfill_attempt").fetchone() == (5,), "no row of its own yet"
    repo.db.execute("update sluice.repo set phase = 'pending', queued_at = null")
    repo.ends(outcome(repo.claim().attempt))
    repo.db.execute("update sluice.repo set phase = 'pending', queued_at = null")
    assert repo.claim().attempt == 8
    assert repo.attempts()[-1] == (8, "running", None)
    repo.ends(wire.AccountEvent(seq=9, time="t", did=DID, active=False, status="takendown"))
    assert repo.attempts() == [
        (1, "failed", "HTTP 500"),
        (2, "deferred", "rate limit"),
        (3, "released", None),
        (4, "failed", "lease expired, or the outcome did not close the attempt"),
        (5, "dropped", "incomplete"),
        (6, "synced", None),
        (7, "synced", None),
        (8, "unavailable", "takendown"),
    ]
    assert [row[0] for row in repo.attempts("host")] == ["https://pds.test"] * 5 + ["https://new.test"] * 3
    assert all(began <= ended for began, ended in repo.attempts("started_at", "ended_at"))
    assert repo.attempts("started_at", "ended_at")[5] == first, "its own row has the times since the repo has left sync"


def test_a_deferred_attempt_that_is_counted_after_all_has_failed(repo: Repo) -> None:
    for seconds in (60.0, 60.0, 0.0):
        repo.queue.retry(DID, repo.claim().attempt, "rate limit", 0, counted=False, uncounted_seconds=seconds)
    assert repo.db.execute("select retry_count from sluice.repo").fetchone() == (1,)
    assert repo.attempts("outcome") == [("deferred",), ("deferred",), ("failed",)]


def test_an_attempt_that_has_written_records_runs_and_is_shown_once(repo: Repo) -> None:
    attempt = repo.claim().attempt
    repo.db.execute("update sluice.repo set first_attempt = attempt")
    assert repo.attempts() == [(attempt, "running", None)]
    repo.queue.retry(DID, attempt, "HTTP 500", 0)
    assert repo.attempts() == [(attempt, "failed", "HTTP 500")]


def test_ten_are_kept_and_a_long_error_is_cut(repo: Repo) -> None:
    for _ in range(13):
        repo.queue.retry(DID, repo.claim().attempt, "x" * 5000, 0)
    assert [row[0] for row in repo.attempts("attempt")] == list(range(4, 14))
    assert {len(row[0]) for row in repo.attempts("error")} == {1000}


def test_a_takedown_by_a_listing_ends_the_attempt(repo: Repo) -> None:
    repo.claim()
    repo.queue.discover([ListedRepo(DID, active=False, status="takendown")])
    assert repo.attempts() == [(1, "unavailable", "taken down")]


def test_a_write_that_is_undone_leaves_no_row(repo: Repo) -> None:
    attempt = repo.claim().attempt
    with suppress(ZeroDivisionError), repo.index.transaction() as transaction:
        apply_events(transaction, {DID: [OffsetEvent(0, outcome(attempt))]}, Rules())
        raise ZeroDivisionError
    assert repo.attempts() == [(1, "running", None)]
