"""Attempts that are not counted: each kind has an end."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock

import psycopg
import pytest

from connectors.identity.resolver import IdentityUnreachable
from connectors.postgres.repo_queue import Claim, ListedRepo, RepoQueue
from flows.backfill.failures import FailureHandler, identity_failure
from schemas import wire
from schemas.settings import Settings
from steps.retry import (
    NOT_ASKED,
    Failure,
    FailureReason,
    GiveUp,
    PauseHost,
    RetryIn,
    RetryPolicy,
    decide,
    uncounted_seconds,
)

DID = "did:plc:abcdefghijklmnopqrstuvwx"
POLICY = RetryPolicy(5, 5.0, 3600.0, 60.0)


class Bed:
    """One repo, claimed again and again."""

    def __init__(self, database: str) -> None:
        self.db = psycopg.connect(database, autocommit=True)
        self.store = RepoQueue(Settings(database=database))
        self.store.discover([ListedRepo(DID)])
        self.attempt = 0

    def ends(self, days: float = 0.0, **given: Any) -> str | None:
        """One more attempt ends; `days`: so long ago the first of these was."""
        self.db.execute(
            "update sluice.repo set next_retry_at = now(), queued_at = now(),"
            " deferred_since = deferred_since - make_interval(secs => %s)",
            (days * 86_400,),
        )
        assert len(self.store.claim([wire.RepoTask(did=DID, attempt=self.attempt, reason="due")], "worker")) == 1
        self.attempt += 1
        return self.store.retry(DID, self.attempt, "directory_unreachable: x", 60.0, **{"counted": False} | given)

    def row(self) -> tuple[int, bool, float]:
        """(retry count, deferred, seconds until the next retry)."""
        query = "select retry_count, deferred_since is not null, extract(epoch from next_retry_at - now())::float8 from sluice.repo"
        found = self.db.execute(query).fetchone()
        assert found is not None
        return found


@pytest.fixture
def bed(database: str) -> Any:
    made = Bed(database)
    yield made
    made.store.close()
    made.db.close()


def test_uncounted_attempts_count_after_a_day(bed: Bed) -> None:
    """H5: `directory_unreachable` had no limit."""
    assert [bed.ends(), bed.ends(0.5), bed.row()[0]] == ["pending", "pending", 0]
    assert bed.ends(0.6) == "pending"
    assert bed.row()[:2] == (1, False)
    phases = [bed.ends(days) for _ in range(4) for days in (0.0, 1.1)]
    assert phases == ["pending"] * 7 + ["failed"]


def test_a_counted_attempt_or_a_fetch_restarts_the_uncounted_time(bed: Bed) -> None:
    bed.ends()
    bed.ends(counted=True)
    assert bed.row()[:2] == (1, False)
    bed.ends()
    bed.ends(2.0, uncounted_seconds=7 * 86_400.0)
    assert bed.row()[:2] == (1, True)
    bed.db.execute("update sluice.repo set phase = 'backfill'")
    bed.store.produced([(DID, bed.attempt, 0, 7)])
    assert bed.row()[1] is False


def test_an_unavailable_directory_is_asked_at_growing_intervals(bed: Bed) -> None:
    """H5"""
    waits = []
    for days in (0.0, 0.01, 0.1, 0.5):
        bed.ends(days, growing=True)
        waits.append(bed.row()[2])  # what is left of it
    assert waits == pytest.approx([60, 432, 3600, 3600], abs=20)


@pytest.mark.parametrize("reason", [FailureReason.DIRECTORY_UNREACHABLE, FailureReason.SPOOL_FULL])
def test_a_failure_is_released_as_decided(reason: FailureReason) -> None:
    """H5: for the directory with growing waits."""
    rows, queue = Mock(), Mock(run=AsyncMock(side_effect=lambda transaction: transaction(rows)))
    claim = Claim(DID, 3, "", None, None, "", 0, 0)
    assert asyncio.run(FailureHandler(queue, Mock(), POLICY).handle(claim, Failure(reason, ""), None)) is None
    given = rows.retry.call_args.kwargs
    growing = reason is FailureReason.DIRECTORY_UNREACHABLE
    assert given == {"counted": False, "last": False, "uncounted_seconds": 86_400.0, "growing": growing}


@pytest.mark.parametrize("reason", list(FailureReason))
def test_every_reason_has_an_end(reason: FailureReason) -> None:
    """H5: counted, or uncounted for a bounded time."""
    decision = decide(Failure(reason, ""), 0, POLICY, key=DID)
    uncounted = isinstance(decision, PauseHost) or (isinstance(decision, RetryIn) and not decision.counted)
    if uncounted:
        assert 86_400 <= uncounted_seconds(reason) <= 30 * 86_400
    elif isinstance(decision, RetryIn):
        assert isinstance(decide(Failure(reason, ""), 4, POLICY, key=DID), GiveUp)
    if uncounted and reason not in NOT_ASKED:
        least = decision.seconds if isinstance(decision, PauseHost | RetryIn) else 0.0
        assert least >= 1.0


def test_a_did_web_host_and_another_s_document_are_the_account_s_own_failure() -> None:
    """H5"""
    silent = IdentityUnreachable("silent", 7.0)
    assert identity_failure("did:web:a.example", silent).reason is FailureReason.WEB_UNREACHABLE
    assert identity_failure(DID, silent).reason is FailureReason.DIRECTORY_UNREACHABLE
    assert identity_failure(DID, IdentityUnreachable("odd", unusable=True)).reason is FailureReason.BAD_DOCUMENT
    for reason in (FailureReason.WEB_UNREACHABLE, FailureReason.BAD_DOCUMENT):
        assert decide(Failure(reason, ""), 0, POLICY, key=DID).counted is True  # type: ignore[union-attr]


def test_requests_of_a_repo_whose_host_always_fails() -> None:
    """H5: five in all, within a day."""
    now, requests = 0.0, 0
    while True:
        requests += 1
        decision = decide(Failure(FailureReason.HTTP_STATUS, "500"), requests - 1, POLICY, key=DID)
        if isinstance(decision, GiveUp):
            break
        assert isinstance(decision, RetryIn)
        now += decision.seconds
    assert requests == 5
    assert 1200 < now < 86_400
