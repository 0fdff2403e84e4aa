"""Negative answers: how long they hold."""

from steps.cooldown import ENTRIES, LONGEST_SECONDS, Cooldowns


def test_a_cooldown_grows_with_each_failure_up_to_an_hour() -> None:
    """H5."""
    cooldowns, now, held = Cooldowns[str](60.0), 1000.0, []
    for _ in range(9):
        until = cooldowns.failed("peer", "why", now)
        assert cooldowns.why("peer", until - 0.1) == "why"
        assert cooldowns.why("peer", until) is None
        held.append(until - now)
        now = until
    assert held == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, *[LONGEST_SECONDS] * 3]


def test_a_success_resets_the_failures_and_a_change_of_the_peer_does_not() -> None:
    cooldowns = Cooldowns[str](60.0)
    cooldowns.failed("peer", "why", 0.0)
    cooldowns.ask_again("peer")
    assert cooldowns.why("peer", 0.0) is None
    assert cooldowns.failed("peer", "why", 0.0) == 120.0
    cooldowns.succeeded("peer")
    assert cooldowns.failed("peer", "why", 0.0) == 60.0


def test_a_time_that_the_peer_names_is_kept_and_bounded() -> None:
    """R3."""
    cooldowns = Cooldowns[str](60.0)
    assert cooldowns.failed("one", "why", 0.0, 300.0) == 300.0
    assert cooldowns.failed("two", "why", 0.0, 86_400.0) == LONGEST_SECONDS


def test_a_peer_that_was_not_asked_has_not_failed() -> None:
    cooldowns = Cooldowns[str](60.0)
    assert cooldowns.busy("peer", "why", 0.0, 5.0) == 5.0
    assert cooldowns.failed("peer", "why", 5.0) == 65.0


def test_memory_is_bounded() -> None:
    """H2"""
    cooldowns = Cooldowns[str](60.0)
    for number in range(ENTRIES + 10):
        cooldowns.failed(str(number), "why", 0.0)
    assert len(cooldowns) == ENTRIES
    assert cooldowns.why("0", 0.0) is None
