"""The gate's rules, one example each (design §5): a repo and an event in, the repo and its effects out."""

from dataclasses import replace

import pytest

from steps.gate import transitions as gate
from steps.gate.model import (
    Apply,
    Buffer,
    Drop,
    DropBuffered,
    DropRows,
    ForgetIdentity,
    Phase,
    Reason,
    Repo,
    Rules,
    Transition,
)
from tests.steps.gate.gate_events import account, commit, ended, identity, op, repo_in, sync_event, synced

SYNC = repo_in(Phase.SYNC)
BACKFILL = repo_in(Phase.BACKFILL, rev="", data=None, first_attempt=None)


def dropped(step: Transition) -> Reason | None:
    return next((effect.reason for effect in step.effects if isinstance(effect, Drop)), None)


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


def test_the_word_of_a_snapshot_on_its_rev_is_final() -> None:
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
def test_a_commit_of_a_repo_that_was_not_found_asks_for_it_again(reason: str) -> None:
    """G5: a directory that lags is no end. Hidden until it is fetched, with all that was seen, and nothing for old news."""
    away = repo_in(Phase.UNAVAILABLE, reason=reason, active=False, status=reason, seen_rev="6")
    step = gate.on_live(away, commit("7", "six", "seven"))
    assert (step.repo.phase, step.repo.reason, step.repo.active) == (Phase.PENDING, Reason.DELETION, False)
    assert (step.repo.seen_rev, step.repo.status, step.repo.retry_in) == ("7", reason, 0.0)
    assert gate.on_live(away, commit("6", "five", "six")).repo.phase == Phase.PENDING
    assert gate.on_live(away, commit("5", "four", "five")).repo == away
    assert gate.on_live(away, commit("7", "six", "seven"), Rules(replayed=True)).repo == away


@pytest.mark.parametrize("reason", ["takendown", "suspended", "deactivated", "deleted", "outside"])
def test_what_is_away_for_another_reason_stays_away(reason: str) -> None:
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


def test_news_of_the_account_outdates_a_fetch_that_found_it_gone() -> None:
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


def test_a_status_told_since_the_claim_outlives_the_outcome() -> None:
    """G2: so it does in a replay, where the event comes after the outcome."""
    throttled = gate.on_account(BACKFILL, account("t1", status="throttled")).repo
    assert gate.on_outcome(throttled, synced(1, "5", "five", 0)).repo.status == "throttled"
    replayed = gate.on_outcome(Repo("did:plc:one"), synced(1, "5", "five", 0)).repo
    assert gate.on_account(replayed, account("t1", status="throttled")).repo.status == "throttled"


# --- accounts and identities


def test_older_account_news_is_dropped() -> None:
    """G2: by time, and then by seq, where no relay is named; see test_ratchet.py."""
    repo = repo_in(Phase.SYNC, account_time="t2", account_seq=5)
    for time, seq in (("t1", 9), ("t2", 5), ("t2", 4)):
        assert dropped(gate.on_account(repo, account(time, seq, active=False))) == Reason.OLD_ACCOUNT_EVENT
    assert gate.on_account(repo, account("t2", 6, active=False, status="takendown")).repo.active is False


@pytest.mark.parametrize("status", ["deleted", "deactivated"])
def test_what_an_abandoned_pds_may_say_is_confirmed_first(status: str) -> None:
    step = gate.on_account(SYNC, account("t1", active=False, status=status))
    assert (step.repo.phase, step.repo.reason, step.repo.active) == (Phase.PENDING, Reason.DELETION, False)
    assert step.repo.status == status
    assert not any(isinstance(effect, DropRows) for effect in step.effects)


def test_a_deletion_is_confirmed_by_an_attempt_not_by_a_listing() -> None:
    """G2: the log has to hold the confirmation, or a rebuild from it waits for one for ever."""
    gone = {"active": False, "status": "deleted", "reason": Reason.DELETED, "rev": "", "data": None}
    listed = repo_in(Phase.UNAVAILABLE, attempt=0, **gone)
    news = account("t1", active=False, status="deleted")
    assert gate.on_account(listed, news).repo.reason == Reason.DELETION
    confirmed = repo_in(Phase.UNAVAILABLE, attempt=1, **gone)
    assert gate.on_account(confirmed, news).repo.phase == Phase.UNAVAILABLE


def test_a_takedown_hides_and_fences_a_running_backfill() -> None:
    step = gate.on_account(
        repo_in(Phase.BACKFILL, buffered=1, buffered_rev="8"), account("t1", active=False, status="takendown")
    )
    assert (step.repo.phase, step.repo.active, step.repo.seen_rev) == (Phase.UNAVAILABLE, False, "8")
    assert step.effects == (DropBuffered(),)


def test_reactivation_fetches_again() -> None:
    hidden = repo_in(Phase.UNAVAILABLE, active=False, status="deactivated", retry_count=3)
    step = gate.on_account(hidden, account("t1"))
    assert (step.repo.phase, step.repo.reason, step.repo.active) == (Phase.PENDING, Reason.REACTIVATED, True)
    assert step.repo.retry_count == 0


def test_a_repo_that_waits_for_a_confirmation_stays_claimable() -> None:
    """G5: no claim takes an inactive repo for another reason, so it would be pending for ever."""
    waiting = repo_in(Phase.BACKFILL, active=False, status="deleted", buffered=1, buffered_rev="6", account_time="t2")
    overflow = gate.on_live(waiting, commit("7", "six", "seven"), Rules(max_buffered=1)).repo
    incomplete = gate.on_outcome(waiting, synced(1, "5", "five", 9)).repo
    changed = gate.on_outcome(waiting, ended(1, "not_found", ("t1", 1), deleted=True)).repo
    for repo in (overflow, incomplete, changed):
        assert (repo.phase, repo.active, repo.reason) == (Phase.PENDING, False, Reason.DELETION)


def test_the_first_event_of_a_repo_makes_it_pending() -> None:
    unknown = gate.unknown("did:plc:new")
    assert gate.on_account(unknown, account("t1")).repo.phase == Phase.PENDING
    assert gate.on_live(unknown, commit("3", None, "three")).repo.seen_rev == "3"


def test_identity_news_takes_the_handle_as_a_hint() -> None:
    step = gate.on_identity(SYNC, identity("t1", handle="Alice.Test"))
    assert (step.repo.handle, step.effects) == ("alice.test", (ForgetIdentity(),))
    assert gate.on_identity(step.repo, identity("t2", handle="handle.invalid")).repo.handle == "alice.test"
    assert dropped(gate.on_identity(step.repo, identity("t1"))) == Reason.OLD_ACCOUNT_EVENT


@pytest.mark.parametrize("status", ["takendown", "deleted", "something new"])
def test_beside_an_active_account_stands_no_status_that_hides_it(status: str) -> None:
    """If an event has both, `active` decides."""
    repo = gate.on_account(SYNC, account("t1", active=True, status=status)).repo
    assert (repo.phase, repo.active, repo.status) == (Phase.SYNC, True, None)
    nameless = gate.on_account(SYNC, account("t1", active=False)).repo
    assert (nameless.active, nameless.status) == (False, "inactive")


@pytest.mark.parametrize("ahead", ["t1", "t9"])
def test_a_relays_takedown_holds_whatever_the_clock_of_the_pds_says(ahead: str) -> None:
    """H6: an #account of a PDS four minutes ahead comes first, and the relay's own later takedown hides."""
    for first in (
        {"active": True},
        {"active": True, "status": "throttled"},
        {"active": False, "status": "deactivated"},
    ):
        repo = gate.on_account(SYNC, account(ahead, 3, relay="r", **first)).repo
        repo = gate.on_account(repo, account("t5", 4, relay="r", active=False, status="takendown")).repo
        assert (repo.active, repo.status, repo.phase) == (False, "takendown", Phase.UNAVAILABLE)
        late = gate.on_account(repo, account("t4", 77, relay="other", active=True))
        assert dropped(late) == Reason.OLD_ACCOUNT_EVENT


def test_account_news_of_several_relays_goes_by_time_and_then_by_sequence() -> None:
    """A sequence number means nothing beside another relay's; the event's own time does."""
    repo = gate.on_account(SYNC, account("t2", 3, active=False, status="takendown")).repo
    late_relay = gate.on_account(repo, account("t1", 900, active=True))
    assert dropped(late_relay) == Reason.OLD_ACCOUNT_EVENT
    back = gate.on_account(repo, account("t3", 1, active=True)).repo
    assert (back.active, back.phase, back.account_time, back.account_seq) == (True, Phase.PENDING, "t3", 1)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("status", ["desynchronized", "throttled"])
def test_an_account_that_a_relay_does_not_follow_is_not_gone(status: str, *, active: bool) -> None:
    """Its PDS serves it: a small PDS's accounts above the relay's limit, for one. What was hidden is asked for there."""
    busy = gate.on_account(SYNC, account("t1", active=active, status=status))
    assert (busy.repo.phase, busy.repo.active, busy.repo.status, busy.effects) == (Phase.SYNC, True, status, ())
    hidden = gate.on_account(SYNC, account("t1", active=False, status="takendown")).repo
    back = gate.on_account(hidden, account("t2", active=active, status=status)).repo
    assert (back.phase, back.active, back.status, back.reason) == (Phase.PENDING, True, status, Reason.REACTIVATED)


def test_unknown_statuses_are_tolerated() -> None:
    """Active with a status: the status is ignored. Inactive with an unknown one: hidden, keeps its rows, and returns."""
    status = "something-of-tomorrow"
    busy = gate.on_account(SYNC, account("t1", active=True, status=status))
    assert (busy.repo.phase, busy.repo.active, busy.repo.status, busy.effects) == (Phase.SYNC, True, None, ())
    hidden = gate.on_account(SYNC, account("t1", active=False, status=status))
    assert (hidden.repo.phase, hidden.repo.active, hidden.repo.status) == (Phase.UNAVAILABLE, False, status)
    assert not any(isinstance(effect, DropRows) for effect in hidden.effects)
    back = gate.on_account(hidden.repo, account("t2", active=True))
    assert (back.repo.phase, back.repo.reason, back.repo.status) == (Phase.PENDING, Reason.REACTIVATED, None)


def test_what_the_pds_that_was_left_says_ends_with_the_account_shown() -> None:
    """After a migration the old PDS sends `deactivated`: the attempt at the PDS of today finds the account, and shows it."""
    hidden = gate.on_account(SYNC, account("t1", active=False, status="deactivated")).repo
    claimed = replace(hidden, phase=Phase.BACKFILL, attempt=hidden.attempt + 1)
    shown = gate.on_outcome(claimed, synced(claimed.attempt, "9", "nine", 0, ("t1", 1)), 0).repo
    assert (shown.phase, shown.active, shown.status) == (Phase.SYNC, True, None)
