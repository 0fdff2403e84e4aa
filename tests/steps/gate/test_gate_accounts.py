"""The gate: what #account and #identity do to a repo."""

import pytest
from msgspec.structs import replace

from steps.gate import transitions as gate
from steps.gate.model import (
    DropBuffered,
    DropRows,
    ForgetIdentity,
    Phase,
    Reason,
    Rules,
)
from tests.steps.gate.gate_events import (
    SYNC,
    account,
    commit,
    dropped,
    ended,
    identity,
    repo_in,
    synced,
)

# --- accounts and identities


def test_older_account_news_is_dropped() -> None:
    """G2: by time, and then by seq, where no relay is named; see test_ratchet.py."""
    repo = repo_in(Phase.SYNC, account_time="t2", account_seq=5)
    for time, seq in (("t1", 9), ("t2", 5), ("t2", 4)):
        assert dropped(gate.on_account(repo, account(time, seq, active=False))) == Reason.OLD_ACCOUNT_EVENT
    assert gate.on_account(repo, account("t2", 6, active=False, status="takendown")).repo.active is False


@pytest.mark.parametrize("status", ["deleted", "deactivated"])
def test_states_that_a_former_pds_may_report_are_confirmed_first(status: str) -> None:
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


def test_a_handle_reported_during_a_fetch_is_not_replaced_by_the_older_document() -> None:
    """A replay of the log has the outcome first and then the #identity: both ways end with the event's handle."""
    claimed = repo_in(Phase.BACKFILL, account_time="t1", account_seq=1)
    fetched = replace(synced(1, "5", "five", 0), account_time="t1", account_seq=1, handle="old.test")
    event = identity("t2", 2, "new.test")
    live = gate.on_outcome(gate.on_identity(claimed, event).repo, fetched).repo
    replayed = gate.on_identity(gate.on_outcome(claimed, fetched).repo, event).repo
    assert live.phase == Phase.SYNC
    assert live.handle == replayed.handle == "new.test"
    hidden = gate.on_account(claimed, account("t2", 2)).repo
    assert gate.on_outcome(hidden, fetched).repo.handle == "old.test", "an #account says nothing of handles"


def test_identity_news_takes_the_handle_as_a_hint() -> None:
    step = gate.on_identity(SYNC, identity("t1", handle="Alice.Test"))
    assert (step.repo.handle, step.effects) == ("alice.test", (ForgetIdentity(),))
    assert gate.on_identity(step.repo, identity("t2", handle="handle.invalid")).repo.handle == "alice.test"
    assert dropped(gate.on_identity(step.repo, identity("t1"))) == Reason.OLD_ACCOUNT_EVENT


@pytest.mark.parametrize("status", ["takendown", "deleted", "something new"])
def test_an_active_account_has_no_status_that_hides_it(status: str) -> None:
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


def test_account_events_of_several_relays_are_ordered_by_time_then_by_sequence() -> None:
    """A sequence number means nothing beside another relay's; the event's own time does."""
    repo = gate.on_account(SYNC, account("t2", 3, active=False, status="takendown")).repo
    late_relay = gate.on_account(repo, account("t1", 900, active=True))
    assert dropped(late_relay) == Reason.OLD_ACCOUNT_EVENT
    back = gate.on_account(repo, account("t3", 1, active=True)).repo
    assert (back.active, back.phase, back.account_time, back.account_seq) == (True, Phase.PENDING, "t3", 1)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("status", ["desynchronized", "throttled"])
def test_an_account_that_a_relay_does_not_follow_stays_active(status: str, *, active: bool) -> None:
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


def test_reports_of_a_former_pds_end_with_the_account_active() -> None:
    """After a migration the old PDS sends `deactivated`: the attempt at the PDS of today finds the account, and shows it."""
    hidden = gate.on_account(SYNC, account("t1", active=False, status="deactivated")).repo
    claimed = replace(hidden, phase=Phase.BACKFILL, attempt=hidden.attempt + 1)
    shown = gate.on_outcome(claimed, synced(claimed.attempt, "9", "nine", 0, ("t1", 1)), 0).repo
    assert (shown.phase, shown.active, shown.status) == (Phase.SYNC, True, None)
