"""The gate: what the messages of an attempt (creates and its outcome) do to a repo."""

import pytest

from steps.gate import transitions as gate
from steps.gate.model import (
    Apply,
    Drop,
    DropBuffered,
    DropRows,
    Phase,
    Reason,
    Repo,
)
from tests.steps.gate.gate_events import BACKFILL, SYNC, account, commit, dropped, ended, repo_in, synced

# --- records of a snapshot


def test_creates_of_the_current_attempt_are_written() -> None:
    step = gate.on_create(BACKFILL, 1, "5")
    assert step.effects == ()
    assert step.repo.first_attempt == 1


@pytest.mark.parametrize(
    ("repo", "attempt", "rev", "reason"),
    [
        (repo_in(Phase.BACKFILL, attempt=2), 1, "9", Reason.CLOSED_ATTEMPT),
        (SYNC, 1, "5", Reason.CLOSED_ATTEMPT),
        (repo_in(Phase.PENDING), 1, "9", Reason.CLOSED_ATTEMPT),
        (repo_in(Phase.BACKFILL, seen_rev="8"), 1, "7", Reason.BELOW_MIN_REV),
    ],
)
def test_other_creates_are_dropped_with_a_reason(repo: Repo, attempt: int, rev: str, reason: Reason) -> None:
    """G2, P3: what a zombie or an old replica wrote changes no row."""
    step = gate.on_create(repo, attempt, rev)
    assert (step.repo, dropped(step)) == (repo, reason)


def test_a_newer_attempt_opens_when_a_log_is_replayed() -> None:
    """G2: the newer attempt always wins, whatever the older one had left."""
    before = repo_in(Phase.SYNC, rev="9", seen_rev="8", buffered=0)
    step = gate.on_create(before, 2, "7")
    assert (step.repo.phase, step.repo.attempt, step.repo.rev, step.repo.seen_rev) == (Phase.BACKFILL, 2, "", "")
    buffered = repo_in(Phase.BACKFILL, buffered=2, buffered_rev="9")
    assert gate.on_create(buffered, 2, "7").effects == (DropBuffered(),)


# --- outcomes


def test_an_accepted_outcome_releases_what_was_buffered_in_one_step() -> None:
    """P2: the transition and the release are one; what the snapshot contains is dropped, the rest applied in log order."""
    buffered = [commit("5", "four", "five"), commit("6", "five", "six"), commit("7", "six", "seven")]
    step = gate.on_outcome(
        repo_in(Phase.BACKFILL, buffered=3, buffered_rev="7"), synced(1, "5", "five", 2), 2, buffered
    )
    assert (step.repo.phase, step.repo.rev, step.repo.data, step.repo.buffered) == (Phase.SYNC, "7", "seven", 0)
    assert step.effects == (Drop(Reason.STALE_REV), Apply(buffered[1]), Apply(buffered[2]), DropBuffered(3))


def test_a_desync_among_buffered_events_folds_the_rest_into_seen_rev() -> None:
    """G1: after the gap nothing is applied; all that was buffered has been seen."""
    buffered = [commit("6", "five", "six"), commit("8", "seven", "eight"), commit("9", "eight", "nine")]
    step = gate.on_outcome(
        repo_in(Phase.BACKFILL, buffered=3, buffered_rev="9"), synced(1, "5", "five", 0), 0, buffered
    )
    assert (step.repo.phase, step.repo.rev, step.repo.seen_rev) == (Phase.PENDING, "6", "9")
    assert [effect for effect in step.effects if isinstance(effect, Apply)] == [Apply(buffered[0])]
    assert (step.repo.desyncs, step.effects[-1]) == (1, DropBuffered(1))


def test_missing_rows_fail_the_attempt() -> None:
    """G3: an outcome is believed only when its rows are there; after the last attempt an operator sees it (G5)."""
    step = gate.on_outcome(BACKFILL, synced(1, "5", "five", 3), 2)
    assert (step.repo.phase, step.repo.reason, step.repo.retry_count) == (Phase.PENDING, Reason.INCOMPLETE, 1)
    assert step.repo.retry_in
    last = repo_in(Phase.BACKFILL, retry_count=4)
    assert gate.on_outcome(last, synced(1, "5", "five", 3), 2).repo.phase == Phase.FAILED


def test_rows_of_earlier_attempts_go() -> None:
    again = repo_in(Phase.BACKFILL, attempt=2)
    assert DropRows(2) in gate.on_outcome(again, synced(2, "6", "six", 0)).effects


def test_an_empty_snapshot_is_a_first_attempt_as_well() -> None:
    """G3: rows of live events follow it, and the next attempt has to drop them."""
    empty = gate.on_outcome(BACKFILL, synced(1, "5", "", 0)).repo
    assert empty.first_attempt == 1
    claimed = repo_in(Phase.BACKFILL, attempt=2, first_attempt=empty.first_attempt)
    opened = gate.on_create(claimed, 2, "7").repo
    assert DropRows(2) in gate.on_outcome(opened, synced(2, "7", "seven", 1), 1).effects


def test_outcomes_of_other_attempts_are_dropped() -> None:
    """C1, G2: only the attempt that is open can be closed."""
    for repo, attempt in ((repo_in(Phase.BACKFILL, attempt=2), 1), (SYNC, 1), (repo_in(Phase.PENDING), 1)):
        step = gate.on_outcome(repo, synced(attempt, "9", "nine", 0))
        assert (step.repo, dropped(step)) == (repo, Reason.CLOSED_ATTEMPT)


def test_an_unavailable_account_is_an_end_state() -> None:
    step = gate.on_outcome(repo_in(Phase.BACKFILL, buffered=1, buffered_rev="7"), ended(1, "takendown"))
    assert (step.repo.phase, step.repo.active, step.repo.status) == (Phase.UNAVAILABLE, False, "takendown")
    assert (step.repo.seen_rev, step.effects) == ("7", (DropBuffered(),))


def test_a_newer_account_event_outdates_a_fetch_that_found_it_unavailable() -> None:
    """G1: the fetch said deactivated, but the account has been seen of since it was claimed."""
    step = gate.on_outcome(repo_in(Phase.BACKFILL, account_time="t2"), ended(1, "deactivated", ("t1", 1)))
    assert (step.repo.phase, step.repo.reason, step.repo.retry_in) == (Phase.PENDING, Reason.ACCOUNT_CHANGED, 0.0)


def test_a_confirmed_deletion_drops_rows_and_keeps_the_fence() -> None:
    waiting = repo_in(Phase.BACKFILL, active=False, status="deleted", attempt=4)
    step = gate.on_outcome(waiting, ended(4, "not_found", deleted=True))
    assert step.effects == (DropBuffered(), DropRows(None))
    assert (step.repo.phase, step.repo.active, step.repo.attempt) == (Phase.UNAVAILABLE, False, 4)


def test_a_replayed_outcome_adopts_its_ratchet() -> None:
    """G2: account events that the attempt reflects do not undo it in a replay."""
    opened = gate.on_outcome(Repo("did:plc:one"), synced(3, "5", "five", 0, ("t5", 2))).repo
    assert (opened.phase, opened.account_time, opened.account_seq) == (Phase.SYNC, "t5", 2)
    assert dropped(gate.on_account(opened, account("t4", active=False, status="takendown"))) == Reason.OLD_ACCOUNT_EVENT


def test_a_status_reported_since_the_claim_survives_the_outcome() -> None:
    """G2: so it does in a replay, where the event comes after the outcome."""
    throttled = gate.on_account(BACKFILL, account("t1", status="throttled")).repo
    assert gate.on_outcome(throttled, synced(1, "5", "five", 0)).repo.status == "throttled"
    replayed = gate.on_outcome(Repo("did:plc:one"), synced(1, "5", "five", 0)).repo
    assert gate.on_account(replayed, account("t1", status="throttled")).repo.status == "throttled"
