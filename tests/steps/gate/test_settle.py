"""A batch through the gate: rounds of writes, facts for outcomes, per-repo order (design §5.4)."""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas import wire
from steps.gate.batch import DatabaseFacts, OffsetEvent, WriteBatch, settle
from steps.gate.model import Phase, Reason, Repo, Rules
from tests.steps.gate.gate_events import DID, account, commit, create, ended, op, repo_in, synced

OTHER = "did:plc:two"


def play(
    repos: Mapping[str, Repo],
    queues: Mapping[str, Sequence[Any]],
    facts: Mapping[str, DatabaseFacts] | None = None,
    rules: Rules | None = None,
) -> tuple[list[WriteBatch], dict[str, Repo]]:
    """All rounds, and the repos afterwards. `facts`: what the database answers, whenever it is asked."""
    placed = {
        did: [OffsetEvent(offset, event) for offset, event in enumerate(events)] for did, events in queues.items()
    }
    settling = settle(repos, placed, rules or Rules())
    rounds = []
    try:
        rounds.append(next(settling))
        while True:
            rounds.append(settling.send({did: (facts or {})[did] for did in rounds[-1].awaiting}))
    except StopIteration as end:
        return rounds, end.value


def rows(work: WriteBatch, did: str = DID) -> dict[str, str | None]:
    """rkey → cid, or None for a row that goes."""
    return {rkey: row and row[3] for (_, rkey), row in work.rows.get(did, {}).items()}


def test_the_release_is_one_round_with_its_transition() -> None:
    """P2, P5: 150 events buffered, "released 150/150", in the same step as the phase."""
    buffered = [commit(f"{n:03}", f"{n - 1:03}", f"{n:03}", op("create", f"r{n}")) for n in range(101, 251)]
    repo = repo_in(Phase.BACKFILL, buffered=150, buffered_rev="250", rev="", data=None)
    rounds, after = play({DID: repo}, {DID: [synced(1, "100", "100", 7)]}, {DID: DatabaseFacts(7, buffered)})
    assert rounds[0].awaiting == {DID: 1}
    assert rounds[1].released == {DID: (150, 150)}
    assert (rounds[1].drop_buffered, len(rounds[1].rows[DID])) == ({DID}, 150)
    assert (after[DID].phase, after[DID].rev, after[DID].buffered) == (Phase.SYNC, "250", 0)


def test_creates_are_written_before_their_outcome_is_decided() -> None:
    """G3: the count of rows is asked after they are there."""
    repo = repo_in(Phase.BACKFILL, rev="", data=None, first_attempt=None)
    events = [create(1, "5", "a"), create(1, "5", "b"), synced(1, "5", "five", 2)]
    rounds, after = play({DID: repo}, {DID: events}, {DID: DatabaseFacts(2)})
    assert rows(rounds[0]) == {"a": "cid", "b": "cid"}
    assert (rounds[0].fresh, rounds[0].awaiting) == ({DID}, {DID: 1})
    assert after[DID].phase == Phase.SYNC


def test_only_first_rows_are_copied() -> None:
    again = repo_in(Phase.BACKFILL, attempt=2, first_attempt=1)
    assert play({DID: again}, {DID: [create(2, "6", "a")]})[0][0].fresh == set()
    first = repo_in(Phase.BACKFILL, rev="", data="five", first_attempt=1)
    events = [create(1, "5", "a"), synced(1, "5", "five", 1), commit("6", "five", "six", op("update", "a", "new"))]
    rounds, _ = play({DID: first}, {DID: events}, {DID: DatabaseFacts(1)})
    assert (rounds[0].fresh, rounds[1].fresh) == ({DID}, set())
    assert rows(rounds[1]) == {"a": "new"}


def test_the_phase_is_read_again_after_every_event() -> None:
    """G4: a gap in the middle of a batch: what follows is seen, not applied."""
    events = [
        commit("6", "five", "six", op("create", "a")),
        commit("8", "seven", "eight", op("create", "b")),
        commit("9", "eight", "nine", op("create", "c")),
    ]
    (work,), after = play({DID: repo_in(Phase.SYNC)}, {DID: events})
    assert rows(work) == {"a": "cid"}
    assert (after[DID].phase, after[DID].rev, after[DID].seen_rev) == (Phase.PENDING, "6", "9")
    assert work.dropped == {Reason.NOT_STARTED: 1}


def test_the_last_operation_on_a_path_wins() -> None:
    """G4: create, delete and create of one path within a batch."""
    events = [
        commit("6", "five", "six", op("create", "a", "one"), op("create", "b", "one")),
        commit("7", "six", "seven", op("delete", "a", None), op("delete", "b", None)),
        commit("8", "seven", "eight", op("create", "a", "two")),
    ]
    (work,), _ = play({DID: repo_in(Phase.SYNC)}, {DID: events})
    assert rows(work) == {"a": "two", "b": None}


def test_rows_carry_their_rev_attempt_and_body() -> None:
    event = commit("6", "five", "six", op("create", "a"))
    event.ops[0].record = wire.msgspec.Raw(b'{"x":1}')
    (work,), _ = play({DID: repo_in(Phase.SYNC, attempt=3)}, {DID: [event]})
    assert work.rows[DID]["c.o.l", "a"] == (DID, "c.o.l", "a", "cid", "6", 3, b'{"x":1}', None, None, event.time, None)


def test_events_buffered_in_this_batch_are_dropped_with_the_phase() -> None:
    """P1, P3: buffered events exist only in backfill."""
    events = [commit("6", "five", "six"), account("t1", active=False, status="takendown")]
    (work,), after = play({DID: repo_in(Phase.BACKFILL)}, {DID: events})
    assert (work.buffered, work.drop_buffered) == ([], {DID})
    assert (after[DID].phase, after[DID].seen_rev) == (Phase.UNAVAILABLE, "6")


def test_what_a_reopened_backfill_holds_stays() -> None:
    """G2: a replay opens attempt 2 in the middle of a batch: the event after it waits, those before it are gone."""
    events = [commit("6", "five", "six"), create(2, "7", "a"), commit("8", "seven", "eight")]
    (work,), after = play({DID: repo_in(Phase.BACKFILL)}, {DID: events})
    assert [event.rev for _, _, event in work.buffered] == ["8"]
    assert (work.drop_buffered, after[DID].buffered) == ({DID}, 1)


def test_overflow_in_a_batch_keeps_nothing_and_forgets_nothing() -> None:
    """G6."""
    events = [commit(str(n), None, "x") for n in range(6, 10)]
    (work,), after = play({DID: repo_in(Phase.BACKFILL)}, {DID: events}, rules=Rules(max_buffered=2))
    assert (work.buffered, work.drop_buffered) == ([], {DID})
    assert (after[DID].phase, after[DID].seen_rev) == (Phase.PENDING, "9")


def test_a_deletion_takes_the_rows_that_wait_in_the_batch() -> None:
    """A replayed log: records of one attempt and the deletion that a later one found, in one batch."""
    events = [create(1, "5", "a"), ended(2, "not_found", deleted=True)]
    (work,), after = play({DID: Repo(DID)}, {DID: events})
    assert (rows(work), work.drop_rows) == ({}, [(DID, None)])
    assert after[DID].phase == Phase.UNAVAILABLE


def test_dropped_records_are_counted_one_by_one() -> None:
    """P3, G7: a zombie's whole snapshot is settled, with its reason and number."""
    events = [create(1, "5", rkey) for rkey in "abc"] + [synced(1, "5", "five", 3)]
    (work,), after = play({DID: repo_in(Phase.SYNC)}, {DID: events})
    assert work.dropped == {Reason.CLOSED_ATTEMPT: 4}
    assert (rows(work), after[DID]) == ({}, repo_in(Phase.SYNC))


def test_repos_wait_for_their_facts_together() -> None:
    """A batch takes as many rounds as its busiest repo has outcomes, however many repos there are."""
    repos = {did: Repo(did, phase=Phase.BACKFILL, attempt=1) for did in (DID, OTHER)}
    outcome = synced(1, "5", "five", 0)
    other = wire.RepoOutcome(did=OTHER, attempt=1, status="synced", active=True, time="t", rev="5", data="x", count=0)
    rounds, after = play(repos, {DID: [outcome], OTHER: [other]}, {DID: DatabaseFacts(), OTHER: DatabaseFacts()})
    assert [set(work.awaiting) for work in rounds] == [{DID, OTHER}, set()]
    assert {repo.phase for repo in after.values()} == {Phase.SYNC}
