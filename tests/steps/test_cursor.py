"""Positions follow a sequence, note what is missing, and never go back."""

from hypothesis import given
from hypothesis import strategies as st

from steps.cursor import MAX_GAPS, Cursors, Gap


def test_the_first_event_and_the_one_after_it_are_no_gap() -> None:
    cursors = Cursors()
    assert cursors.advance("a", 41) is None
    assert cursors.advance("a", 42) is None
    assert cursors.positions == {"a": 42}


def test_a_hole_is_noted_also_right_after_a_restart() -> None:
    cursors = Cursors({"a": 10})
    assert cursors.advance("a", 15) == Gap("a", 11, 14, "sequence_gap")
    assert cursors.take_gaps() == [Gap("a", 11, 14, "sequence_gap")]
    assert cursors.take_gaps() == []


def test_repeats_move_nothing() -> None:
    """G8"""
    cursors = Cursors({"a": 10})
    assert cursors.advance("a", 10) is None
    assert cursors.advance("a", 3) is None
    assert cursors.positions == {"a": 10}


def test_a_sequence_that_restarted_is_followed_and_its_loss_noted() -> None:
    """G8: the old position would be asked for again at every reconnect, and whatever comes between is lost."""
    cursors = Cursors({"a": 1000})
    assert cursors.restart("a", 40, 1234) == Gap("a", None, None, "sequence_restarted")
    assert cursors.detail("a") == {"epoch": 1234, "time": ""}
    assert cursors.advance("a", 41) is None
    assert cursors.advance("a", 43) == Gap("a", 42, 42, "sequence_gap")
    assert cursors.positions == {"a": 43}


def test_a_restart_to_a_later_seq_is_a_hole() -> None:
    cursors = Cursors({"a": 10})
    assert cursors.restart("a", 13) == Gap("a", 11, 12, "sequence_gap")
    assert cursors.positions == {"a": 13}


def test_what_is_not_understood_uses_up_its_seq_but_never_jumps() -> None:
    """G8: an unknown message with a seq from far ahead would lose all events up to it at the next reconnect."""
    cursors = Cursors({"a": 10})
    cursors.pass_by("a", 11)
    cursors.pass_by("a", 500)
    cursors.pass_by("b", 500)
    assert cursors.positions == {"a": 11}
    assert cursors.advance("a", 12) is None


def test_upstreams_do_not_mix() -> None:
    cursors = Cursors({"a": 10, "b": 99})
    assert cursors.advance("b", 100) is None
    assert cursors.advance("a", 11) is None


@given(st.lists(st.integers(0, 50), min_size=1))
def test_position_is_the_highest_seen_and_gaps_are_what_is_missing(seqs: list[int]) -> None:
    cursors = Cursors()
    for seq in seqs:
        cursors.advance("a", seq)
    assert cursors.positions["a"] == max(seqs)
    missing = {s for gap in cursors.gaps for s in range(gap.from_seq or 0, (gap.to_seq or 0) + 1)}
    running, expected = seqs[0], set()
    for seq in seqs:
        expected |= set(range(running + 1, seq))
        running = max(running, seq)
    assert missing == expected


def test_gaps_are_bounded() -> None:
    """G6: an upstream with holes by design does not fill the memory, and no hole is forgotten."""
    cursors = Cursors({"a": 0})
    for seq in range(2, 2 * MAX_GAPS + 100, 2):
        cursors.advance("a", seq)
    assert len(cursors.gaps) == MAX_GAPS
    assert cursors.gaps[-1].to_seq == 2 * MAX_GAPS + 97
