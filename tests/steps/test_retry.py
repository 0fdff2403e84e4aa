"""Decisions about failed attempts."""

from __future__ import annotations

import pytest

from protocol.snapshot import SnapshotReason
from steps.backoff import retry_seconds
from steps.retry import (
    ACCOUNT_ERRORS,
    Failure,
    FailureReason,
    GiveUp,
    PauseHost,
    RetryIn,
    RetryPolicy,
    Unavailable,
    decide,
)

POLICY = RetryPolicy(max_attempts=5, first_seconds=5.0, longest_seconds=3600.0, pause_seconds=60.0)
DID = "did:plc:abcdefghijklmnopqrstuvwx"


def test_failures_count_until_the_last_attempt() -> None:
    """C5, G5: four retries with growing delays, then the end."""
    failure = Failure(FailureReason.HTTP_STATUS, "500")
    decisions = [decide(failure, n, POLICY, key=DID) for n in range(6)]
    assert [type(one) for one in decisions] == [RetryIn] * 4 + [GiveUp] * 2
    delays = [one.seconds for one in decisions if isinstance(one, RetryIn)]
    assert delays == sorted(delays)
    assert all(one.counted for one in decisions if isinstance(one, RetryIn))
    assert sum(delays) > 1200, "a host that is down for twenty minutes fails no repo"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 60, 1000])
def test_backoff_stays_within_its_bounds_and_is_spread(n: int) -> None:
    """C5: between half of 5 s and 1 h; the same for the same repo, different for others."""
    delays = [retry_seconds(n, f"did:plc:{i}", 5.0, 3600.0) for i in range(200)]
    assert all(2.5 <= one <= 3600.0 for one in delays)
    assert delays == [retry_seconds(n, f"did:plc:{i}", 5.0, 3600.0) for i in range(200)]
    assert max(delays) / min(delays) > 1.8


@pytest.mark.parametrize("reason", ACCOUNT_ERRORS.values())
@pytest.mark.parametrize("retry_count", [0, 4, 100])
def test_an_account_state_is_not_a_failure(reason: FailureReason, retry_count: int) -> None:
    assert decide(Failure(reason, ""), retry_count, POLICY, key=DID) == Unavailable(str(reason), deleted=False)


def test_only_a_missing_account_confirms_a_deletion() -> None:
    """A reported deletion is confirmed when the PDS does not know the repo, or the DID has none."""
    confirmed = {
        reason
        for reason in (
            *ACCOUNT_ERRORS.values(),
            FailureReason.DID_NOT_FOUND,
            FailureReason.DID_TOMBSTONED,
            FailureReason.NO_PDS,
        )
        if decide(Failure(reason, ""), 0, POLICY, key=DID, deletion=True) == Unavailable(str(reason), deleted=True)
    }
    assert confirmed == {FailureReason.NOT_FOUND, FailureReason.DID_TOMBSTONED, FailureReason.NO_PDS}


def test_a_failure_s_text_fits_a_text_column() -> None:
    """G7: a host's own words, which PostgreSQL would refuse, ended the worker."""
    assert str(Failure(FailureReason.HTTP_STATUS, "a\0b\udcff")) == "http_status: a\ufffdb\ufffd"


@pytest.mark.parametrize(
    ("named", "seconds"), [(None, 60.0), (0.0, 1.0), (-5.0, 1.0), (30.0, 30.0), (1e9, 3600.0), (float("inf"), 3600.0)]
)
def test_a_rate_limit_pauses_the_host_uncounted(named: float | None, seconds: float) -> None:
    """R3: whatever the server names is clamped to 1 s … 1 h; the repo comes back after the pause, spread over half of it."""
    decision = decide(Failure(FailureReason.RATE_LIMITED, "429", named), 4, POLICY, key=DID)
    assert isinstance(decision, PauseHost)
    assert decision.seconds == seconds
    assert seconds <= decision.retry_seconds <= 1.5 * seconds


@pytest.mark.parametrize(
    "reason",
    [FailureReason.HOST_PAUSED, FailureReason.HOST_BUSY, FailureReason.DIRECTORY_UNREACHABLE, FailureReason.SPOOL_FULL],
)
def test_what_is_not_the_repos_fault_is_not_counted(reason: FailureReason) -> None:
    """R3: even after four counted failures."""
    decision = decide(Failure(reason, "", 10.0), 4, POLICY, key=DID)
    assert isinstance(decision, RetryIn)
    assert not decision.counted
    assert 10.0 <= decision.seconds <= 15.0
    assert decision.growing is (reason is FailureReason.DIRECTORY_UNREACHABLE)


ABOVE_A_LIMIT = (SnapshotReason.TOO_LARGE, SnapshotReason.TOO_MANY_BLOCKS)


@pytest.mark.parametrize("reason", [one for one in SnapshotReason if one not in ABOVE_A_LIMIT])
def test_every_rejected_snapshot_is_a_counted_failure(reason: SnapshotReason) -> None:
    """G5, G7."""
    assert decide(Failure(reason, "x"), 4, POLICY, key=DID) == GiveUp()
    first = decide(Failure(reason, "x"), 0, POLICY, key=DID)
    assert isinstance(first, RetryIn)
    assert first.counted


@pytest.mark.parametrize("reason", [FailureReason.TOO_LARGE, *ABOVE_A_LIMIT])
def test_a_repo_above_a_limit_is_not_fetched_again(reason: FailureReason | SnapshotReason) -> None:
    """C5, G6: it would be gigabytes once more, for the same end."""
    assert decide(Failure(reason, "x"), 0, POLICY, key=DID) == GiveUp()


def test_a_longer_wait_named_by_the_server_is_respected() -> None:
    """503 with Retry-After: counted, but not before the time that was asked for; an hour at most."""
    decision = decide(Failure(FailureReason.HTTP_STATUS, "503", 120.0), 0, POLICY, key=DID)
    assert decision == RetryIn(120.0, counted=True)
    assert decide(Failure(FailureReason.HTTP_STATUS, "503", 1e6), 0, POLICY, key=DID) == RetryIn(3600.0, counted=True)


def test_every_reason_is_decided() -> None:
    for reason in FailureReason:
        assert decide(Failure(reason, ""), 0, POLICY, key=DID) is not None
