"""The ratchet of account events: by seq within a relay, by time between relays, and never twice."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import wire
from steps.gate.model import Repo
from steps.gate.ratchet import MAX_RELAYS, adopted, advanced, position, source_of

DID = "did:plc:one"


def event(relay: str, seq: int, time: int, epoch: int = 0) -> wire.AccountEvent:
    return wire.AccountEvent(seq=seq, time=f"t{time:03d}", did=DID, active=True, relay=relay, epoch=epoch)


def identity(relay: str, seq: int, time: int, epoch: int = 0) -> wire.IdentityEvent:
    return wire.IdentityEvent(seq=seq, time=f"t{time:03d}", did=DID, relay=relay, epoch=epoch)


def applied(events: Sequence[wire.AccountEvent | wire.IdentityEvent]) -> list[bool]:
    repo, verdicts = Repo(DID), []
    for one in events:
        repo, newer = advanced(repo, one)
        verdicts.append(newer)
    return verdicts


def test_within_a_relay_seq_decides_whatever_the_clocks_say() -> None:
    """H6: a PDS whose clock is ahead cannot make the relay's later takedown an older event."""
    assert applied([event("a", 1, 400), event("a", 2, 100), event("a", 3, 50)]) == [True, True, True]
    assert applied([event("a", 5, 100), event("a", 4, 200), event("a", 5, 300)]) == [True, False, False]


def test_between_relays_time_decides() -> None:
    """H6: their sequences have nothing to do with each other."""
    assert applied([event("a", 9000, 10), event("b", 1, 9), event("b", 2, 10), event("b", 3, 11)]) == [
        True,
        False,
        False,
        True,
    ]


def test_the_time_to_beat_is_the_highest_of_all_that_were_applied() -> None:
    """H6: an event of another relay from before the one whose time was lower is older all the same."""
    assert applied([event("a", 1, 30), event("a", 2, 5), event("b", 1, 20)]) == [True, True, False]


def test_a_restarted_sequence_is_compared_like_another_relay() -> None:
    """H6: a relay that counts from 1 again would else say nothing new until it is past its old number."""
    assert applied([event("a", 9000, 10), event("a", 3, 11, epoch=7), event("a", 9001, 12)]) == [True, True, True]
    assert source_of(event("a", 1, 1)) == "a"
    assert source_of(event("a", 1, 1, epoch=7)) != source_of(event("a", 1, 1, epoch=8))


def test_events_of_an_earlier_release_go_by_time_and_then_by_seq() -> None:
    repo, _ = advanced(Repo(DID), event("", 5, 20))
    for time, seq, newer in ((10, 9, False), (20, 5, False), (20, 6, True), (21, 1, True)):
        assert advanced(repo, event("", seq, time))[1] is newer
    assert advanced(repo, event("a", 1, 21))[1]


def test_an_identity_does_not_make_an_account_event_of_a_relay_that_lags_older() -> None:
    """A relay that lags by an hour sends its own takedown by its own clock."""
    events = [event("a", 1, 10), identity("a", 2, 60), event("b", 5, 30), event("b", 6, 20), identity("b", 7, 40)]
    assert applied(events) == [True, True, True, True, False]
    assert applied([event("a", 1, 30), identity("a", 2, 60), event("b", 5, 30)]) == [True, True, False]


def test_an_outcome_raises_the_ratchet_and_never_lowers_it() -> None:
    """G2"""
    repo, _ = advanced(Repo(DID), event("a", 5, 20))
    for relay, seq, time in (("b", 1, "t030"), ("a", 7, "t020")):
        assert position(adopted(repo, outcome(relay, seq, time))) == (relay, seq, time)
    for relay, seq, time in (("b", 9, "t020"), ("a", 3, "t020"), ("", 0, "")):
        assert adopted(repo, outcome(relay, seq, time)) == repo


def outcome(relay: str, seq: int, time: str) -> wire.RepoOutcome:
    return wire.RepoOutcome(
        did=DID,
        attempt=1,
        status="synced",
        active=True,
        time="t",
        account_relay=relay,
        account_seq=seq,
        account_time=time,
    )


sources = st.tuples(st.sampled_from("abc"), st.sampled_from((0, 0, 1)))
kinds = st.sampled_from((event, event, identity))
events = st.builds(lambda k, s, n, t: k(s[0], n, t, s[1]), kinds, sources, st.integers(0, 6), st.integers(0, 20))


@settings(max_examples=500, deadline=None)
@given(st.lists(events), st.randoms())
def test_no_event_is_applied_twice_in_any_replay(
    log: list[wire.AccountEvent | wire.IdentityEvent], rng: object
) -> None:
    """G2: a log read again from anywhere, or in another order, changes nothing."""
    repo = Repo(DID)
    for one in log:
        before = repo
        repo, newer = advanced(repo, one)
        assert repo.account_time >= before.account_time
        assert newer or position(repo) == position(before)
    again = list(log)
    rng.shuffle(again)  # type: ignore[attr-defined]  # a Random
    for one in again:
        seen, newer = advanced(repo, one)
        assert not newer
        assert position(seen) == position(repo)


def test_what_is_remembered_of_other_relays_is_bounded() -> None:
    """G6"""
    repo = Repo(DID)
    for number in range(100):
        repo, newer = advanced(repo, event(f"https://relay{number}.example", 10**15, number + 1))
        assert newer
    assert repo.account_seen.count("https://") == MAX_RELAYS
    assert len(repo.account_seen) < 1000
