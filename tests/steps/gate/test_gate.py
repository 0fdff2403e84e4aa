"""The gate's rules, one example each (design §5): a repo and an event in, the repo and its effects out."""

import pytest
from msgspec.structs import replace

from steps.gate import transitions as gate
from steps.gate.model import (
    Apply,
    Buffer,
    DropBuffered,
    Phase,
    Reason,
    Rules,
)
from tests.steps.gate.gate_events import (
    BACKFILL,
    SYNC,
    commit,
    dropped,
    ended,
    op,
    repo_in,
    sync_event,
)

# --- live events of a repo in sync


def test_a_commit_that_fits_is_applied() -> None:
    """G1: the rows follow the chain."""
    event = commit("6", "five", "six", op("create", "a"))
    step = gate.on_live(SYNC, event)
    assert step.effects == (Apply(event),)
    assert (step.repo.rev, step.repo.data, step.repo.from_snapshot) == ("6", "six", False)


def test_an_empty_commit_advances_too() -> None:
    step = gate.on_live(SYNC, commit("6", "five", "five"))
    assert (step.repo.phase, step.repo.rev) == (Phase.SYNC, "6")


@pytest.mark.parametrize("rev", ["4", "5"])
def test_what_the_rows_contain_is_dropped(rev: str) -> None:
    """G2: a replayed commit changes nothing."""
    step = gate.on_live(SYNC, commit(rev, "four", "five"))
    assert (step.repo, dropped(step)) == (SYNC, Reason.STALE_REV)


def test_the_same_rev_with_other_data_is_fetched_once() -> None:
    step = gate.on_live(SYNC, commit("5", "four", "other"))
    assert (step.repo.phase, step.repo.reason, step.repo.min_rev) == (Phase.PENDING, Reason.DESYNC, "5")


def test_a_snapshot_is_final_for_its_rev() -> None:
    """G5: two commits with one rev do not cause a fetch each time that one of them comes again."""
    from_snapshot = repo_in(Phase.SYNC, from_snapshot=True)
    step = gate.on_live(from_snapshot, commit("5", "four", "other"))
    assert (step.repo, dropped(step)) == (from_snapshot, Reason.SAME_REV_OF_SNAPSHOT)


def test_a_gap_desyncs_and_the_event_itself_is_seen() -> None:
    """G1: the snapshot to come must contain the event that revealed the gap."""
    step = gate.on_live(SYNC, commit("7", "six", "seven"))
    assert (step.repo.phase, step.repo.seen_rev, step.repo.rev) == (Phase.PENDING, "7", "5")
    assert step.repo.min_rev == "7"
    assert step.repo.retry_in == 0.0


def test_legacy_events_are_chained_by_since() -> None:
    assert gate.on_live(SYNC, commit("6", None, "six", since="5")).repo.phase == Phase.SYNC
    assert gate.on_live(SYNC, commit("7", None, "seven", since="6")).repo.phase == Phase.PENDING


def test_a_commit_without_a_record_that_it_creates_desyncs() -> None:
    """G1: a row without its record is not left for the next audit."""
    missing = commit("6", "five", "six", op("create", "a", reason=gate.MISSING_BLOCK))
    assert gate.on_live(SYNC, missing).repo.reason == Reason.DESYNC
    gone = commit("6", "five", "six", op("delete", "a", None, reason=gate.MISSING_BLOCK))
    assert gate.on_live(SYNC, gone).repo.phase == Phase.SYNC


def test_a_sync_event_advances_or_desyncs() -> None:
    assert gate.on_live(SYNC, sync_event("6", "five")).repo.rev == "6"
    assert gate.on_live(SYNC, sync_event("6", "six")).repo.reason == Reason.DESYNC


def test_the_back_off_of_desyncs_survives_success() -> None:
    """G5: a PDS whose chain never fits cannot buy a getRepo per event."""
    delays = []
    repo = SYNC
    for _ in range(4):
        repo = gate.on_live(repo, commit("9", "none", "nine")).repo
        delays.append(repo.retry_in)
        repo = repo_in(Phase.SYNC, desyncs=repo.desyncs, desync_age=10.0)
    assert delays[0] == 0.0
    assert delays == sorted(delays)  # type: ignore[type-var]  # all are numbers
    assert delays[1]
    quiet = repo_in(Phase.SYNC, desyncs=repo.desyncs, desync_age=4000.0)
    assert gate.on_live(quiet, commit("9", "none", "nine")).repo.retry_in == 0.0


# --- live events of a repo that is not in sync


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.FAILED, Phase.UNAVAILABLE])
def test_before_the_fetch_events_are_only_seen(phase: Phase) -> None:
    """P3: settled the first time; the snapshot will contain it, or be refused as stale."""
    step = gate.on_live(repo_in(phase), commit("7", "six", "seven"))
    assert (step.repo.phase, step.repo.seen_rev, dropped(step)) == (phase, "7", Reason.NOT_STARTED)
    assert gate.on_live(step.repo, commit("6", "five", "six")).repo.seen_rev == "7"


@pytest.mark.parametrize("rev", ["4", "5"])
@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.FAILED, Phase.UNAVAILABLE])
def test_what_was_applied_is_not_seen_again(phase: Phase, rev: str) -> None:
    """G2: a commit that the rows contain, replayed after the repo has left sync, leaves its row as it is."""
    left = repo_in(phase, seen_rev="3")
    assert gate.on_live(left, commit(rev, "four", "five")).repo == left


@pytest.mark.parametrize("reason", ["not_found", "did_not_found", "no_pds"])
def test_a_commit_of_a_repo_that_was_not_found_queues_it_again(reason: str) -> None:
    """G5: a directory that lags is no end. Hidden until it is fetched, with all that was seen, and nothing for old news."""
    away = repo_in(Phase.UNAVAILABLE, reason=reason, active=False, status=reason, seen_rev="6")
    step = gate.on_live(away, commit("7", "six", "seven"))
    assert (step.repo.phase, step.repo.reason, step.repo.active) == (Phase.PENDING, Reason.DELETION, False)
    assert (step.repo.seen_rev, step.repo.status, step.repo.retry_in) == ("7", reason, 0.0)
    assert gate.on_live(away, commit("6", "five", "six")).repo.phase == Phase.PENDING
    assert gate.on_live(away, commit("5", "four", "five")).repo == away
    assert gate.on_live(away, commit("7", "six", "seven"), Rules(replayed=True)).repo == away


@pytest.mark.parametrize("reason", ["takendown", "suspended", "deactivated", "deleted", "outside"])
def test_a_repo_unavailable_for_another_reason_stays_unavailable(reason: str) -> None:
    away = repo_in(Phase.UNAVAILABLE, reason=reason, active=False, status=reason)
    step = gate.on_live(away, commit("7", "six", "seven"))
    assert (step.repo.phase, step.repo.seen_rev) == (Phase.UNAVAILABLE, "7")


def test_a_repo_that_was_not_found_while_it_committed_is_asked_for_again() -> None:
    """G5: the commits that were buffered while the directory was asked say that there is something to be found."""
    buffered = repo_in(Phase.BACKFILL, buffered=1, buffered_rev="7")
    step = gate.on_outcome(buffered, ended(1, "did_not_found"))
    assert (step.repo.phase, step.repo.active, step.repo.seen_rev) == (Phase.PENDING, False, "7")
    assert step.effects == (DropBuffered(),)
    assert step.repo.retry_in
    for outcome, old in (("did_not_found", "5"), ("takendown", "7")):
        step = gate.on_outcome(replace(buffered, buffered_rev=old), ended(1, outcome))
        assert step.repo.phase == Phase.UNAVAILABLE


def test_while_a_backfill_runs_events_are_buffered() -> None:
    """P1: recorded, not put before a consumer that would refuse them; and min_rev stands still."""
    event = commit("7", "six", "seven")
    step = gate.on_live(BACKFILL, event)
    assert step.effects == (Buffer(event),)
    assert (step.repo.buffered, step.repo.buffered_rev, step.repo.min_rev) == (1, "7", "")


def test_too_many_buffered_events_restart_the_fetch() -> None:
    """G6: what waits is bounded, and nothing is forgotten for it."""
    full = repo_in(Phase.BACKFILL, buffered=3, buffered_rev="8")
    step = gate.on_live(full, commit("9", "eight", "nine"), Rules(max_buffered=3))
    assert (step.repo.phase, step.repo.reason, step.repo.seen_rev) == (Phase.PENDING, Reason.OVERFLOW, "9")
    assert step.effects == (DropBuffered(),)
    assert (step.repo.buffered, step.repo.buffered_rev) == (0, "")


def test_too_many_bytes_of_buffered_events_restart_the_fetch() -> None:
    """G6: events of two megabytes fill the index's memory long before there are ten thousand of them."""
    rules = Rules(max_buffered_bytes=10)
    left = repo_in(Phase.BACKFILL, buffered_bytes=9)  # of an earlier attempt: none is buffered any more
    one = gate.on_live(left, commit("7", "six", "seven"), rules, 6)
    assert (one.repo.buffered, one.repo.buffered_bytes) == (1, 6)
    two = gate.on_live(one.repo, commit("8", "seven", "eight"), rules, 4)
    assert (two.repo.buffered, two.repo.buffered_bytes) == (2, 10)
    full = gate.on_live(two.repo, commit("9", "eight", "nine"), rules, 1)
    assert (full.repo.phase, full.repo.reason, full.repo.seen_rev) == (Phase.PENDING, Reason.OVERFLOW, "9")
    assert full.effects == (DropBuffered(),)
    assert gate.on_live(left, commit("7", "six", "seven"), rules, 11).repo.phase == Phase.PENDING
