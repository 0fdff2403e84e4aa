"""The gate and the filter: what it leaves out of an attempt counts, but only under the filter that left it out."""

from dataclasses import replace

from steps.gate import transitions as gate
from steps.gate.filters import Filter
from steps.gate.model import Phase, Reason, Rules
from tests.steps.gate.gate_events import BACKFILL, synced

RULES = Rules(filter=Filter(3, ("c.o.l",)))
CHANGED = Rules(filter=Filter(4, ("c.o.*",)))


def test_what_is_left_out_counts_towards_the_outcome() -> None:
    """N9"""
    left = gate.leave_out(gate.leave_out(BACKFILL, 2, RULES), 1, RULES)
    assert (left.left, left.left_filter) == (3, 3)
    outcome = synced(BACKFILL.attempt, "5", "five", 5)
    assert gate.on_outcome(left, outcome, rows=2, rules=RULES).repo.phase == Phase.SYNC
    assert gate.on_outcome(left, outcome, rows=1, rules=RULES).repo.reason == Reason.INCOMPLETE


def test_nothing_left_out_and_a_replay_change_nothing() -> None:
    assert gate.leave_out(BACKFILL, 0, RULES) is BACKFILL
    assert gate.leave_out(BACKFILL, 2, replace(RULES, replayed=True)) is BACKFILL


def test_under_another_filter_the_count_proves_nothing() -> None:
    """N9: the new filter may keep what was left out; after two filters nobody knows which records these were."""
    outcome = synced(BACKFILL.attempt, "5", "five", 5)
    left = gate.leave_out(BACKFILL, 3, RULES)
    twice = gate.leave_out(left, 1, CHANGED)
    assert (twice.left, twice.left_filter) == (4, 0)
    for repo, rows in ((left, 2), (twice, 1)):
        after = gate.on_outcome(repo, outcome, rows=rows, rules=CHANGED).repo
        assert (after.phase, after.reason, after.retry_in) == (Phase.PENDING, Reason.FILTER, 0.0)
