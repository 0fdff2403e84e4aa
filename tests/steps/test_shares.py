"""Shares of a stream: who handles a DID, and where a share starts when their number changes. Pure, and as a model."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from steps.shares import WHOLE, Mark, Share, Start, passed, start

DIDS = [f"did:plc:{n}" for n in range(12)]
LENGTH = 40  # events of the modelled stream


def test_exactly_one_share_handles_a_did_and_the_first_one_what_has_none() -> None:
    for count in range(1, 9):
        shares = [Share(number, count) for number in range(count)]
        assert all(sum(share.owns(did) for share in shares) == 1 for did in DIDS)
        assert [share.owns(None) for share in shares] == [True] + [False] * (count - 1)


def test_the_share_of_a_did_never_changes() -> None:
    """Stored positions mean these shares; another hash would lose events."""
    dids = ["did:plc:ewvi7nxzyoun6zhxrhs64oiz", "did:web:example.com", "did:plc:z72i7hdynmk6r22z27h6tvur"]
    for count, expected in ((2, [0, 1, 0]), (3, [1, 1, 2])):
        assert [Share(number, count).owns(did) for did, number in zip(dids, expected, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("share", "rows", "expected"),
    [
        (WHOLE, {}, None),
        (WHOLE, {WHOLE: Mark(7, 50)}, Start(Mark(7, 50), own=True)),
        (Share(2, 3), {WHOLE: Mark(7, 50)}, Start(Mark(7, 50), own=False)),
        # the lowest of the old shares leads
        (WHOLE, {Share(0, 2): Mark(7, 50), Share(1, 2): Mark(7, 40)}, Start(Mark(7, 40), own=False)),
        (Share(0, 2), {Share(0, 2): Mark(7, 50), Share(1, 2): Mark(7, 40)}, Start(Mark(7, 50), own=True)),
        # a number that has not all of its rows covers only the repos of those
        (Share(0, 2), {Share(0, 3): Mark(7, 90), Share(1, 3): Mark(7, 80), WHOLE: Mark(7, 50)}, Start(Mark(7, 50), own=False)),
        (Share(0, 3), {Share(0, 3): Mark(7, 90), WHOLE: Mark(7, 50)}, Start(Mark(7, 90), own=True)),
        # back to a former number: its rows may be old
        (Share(0, 2), {Share(0, 2): Mark(7, 50), Share(1, 2): Mark(7, 40), WHOLE: Mark(7, 70)}, Start(Mark(7, 70), own=False)),
        # no number has all rows: some repos have no position yet
        (WHOLE, {Share(0, 3): Mark(7, 90), Share(1, 3): Mark(7, 80)}, Start(Mark(7, 80), own=False, gap="began_at_tip")),
        # the relay's sequence began again: seqs of the old one prove nothing, and who did not notice may have missed its end
        (Share(0, 2), {WHOLE: Mark(7, 900), Share(0, 3): Mark(8, 5), Share(1, 3): Mark(8, 6), Share(2, 3): Mark(8, 4)}, Start(Mark(8, 4), own=False)),
        (WHOLE, {Share(0, 2): Mark(8, 5), Share(1, 2): Mark(7, 900)}, Start(Mark(8, 5), own=False, gap="sequence_restarted")),
        (Share(0, 2), {Share(0, 2): Mark(7, 900), WHOLE: Mark(8, 5)}, Start(Mark(8, 5), own=False)),
        # a share that was away while another one of its number noticed
        (Share(0, 2), {Share(0, 2): Mark(7, 900), Share(1, 2): Mark(8, 5)}, Start(Mark(8, 5), own=False, gap="sequence_restarted")),
        (Share(1, 2), {Share(0, 2): Mark(7, 900), Share(1, 2): Mark(8, 5)}, Start(Mark(8, 5), own=True)),
        (Share(0, 3), {Share(0, 3): Mark(7, 900), Share(1, 3): Mark(8, 5), WHOLE: Mark(7, 1)}, Start(Mark(8, 5), own=False, gap="sequence_restarted")),
    ],
)  # fmt: skip
def test_where_a_share_starts(share: Share, rows: dict[Share, Mark], expected: Start | None) -> None:
    assert start(share, rows) == expected


def test_rows_of_another_number_go_when_all_shares_have_passed_them() -> None:
    rows = {WHOLE: Mark(7, 50), Share(0, 2): Mark(7, 60)}
    assert passed(Share(0, 2), rows) == []  # the second share has none yet
    rows[Share(1, 2)] = Mark(7, 49)
    assert passed(Share(0, 2), rows) == []
    rows[Share(1, 2)] = Mark(7, 50)
    assert passed(Share(0, 2), rows) == [WHOLE]
    assert passed(WHOLE, rows) == [Share(1, 2)]
    rows[WHOLE] = Mark(6, 900)
    assert passed(Share(0, 2), rows) == [WHOLE]


@dataclass
class Process:
    """A firehose process of the model: `read` events are in the log; its row follows at some later moment."""

    share: Share
    read: int
    unwritten: bool = False


@dataclass
class Model:
    """A stream, the cursor's rows, and any processes at once, of which each step may be the last."""

    rng: random.Random
    rows: dict[Share, Mark] = field(default_factory=lambda: {WHOLE: Mark(0, 0)})
    running: list[Process] = field(default_factory=list)
    logged: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dids = [self.rng.choice(DIDS) for _ in range(LENGTH)]

    def begin(self, share: Share) -> None:
        begun = start(share, self.rows)
        assert begun is not None
        assert not begun.gap
        self.running.append(Process(share, begun.mark.seq, unwritten=not begun.own))

    def store(self, process: Process) -> None:
        self.rows[process.share] = Mark(0, process.read)
        process.unwritten = False

    def go_on(self, process: Process, count: int) -> None:
        """Up to `count` further events; those of the share go to the log."""
        if process.unwritten:
            self.store(process)
        end = min(LENGTH, process.read + count)
        self.logged += [at for at in range(process.read, end) if process.share.owns(self.dids[at])]
        process.read = end

    def retire(self, process: Process) -> None:
        for old in passed(process.share, self.rows):
            del self.rows[old]

    def step(self) -> None:
        draw = self.rng.random()
        if draw < 0.25 or not self.running:
            count = self.rng.choice((1, 2, 3))
            self.begin(Share(self.rng.randrange(count), count))
            return
        process = self.rng.choice(self.running)
        if draw < 0.4:
            self.running.remove(process)  # kill -9
        elif draw < 0.75:
            self.go_on(process, self.rng.randint(1, 6))
        elif draw < 0.9:
            self.store(process)
        else:
            self.retire(process)

    def finish(self, count: int) -> None:
        """All processes end; then every share of one number runs to the end."""
        self.running.clear()
        for number in range(count):
            self.begin(Share(number, count))
        for process in self.running:
            self.go_on(process, LENGTH)

    def first_times(self, did: str) -> list[int]:
        return list(dict.fromkeys(at for at in self.logged if self.dids[at] == did))


def test_no_change_of_the_number_loses_an_event_or_an_accounts_order() -> None:
    """S3: shares of 1, 2 and 3 start, run beside each other, are killed and retire rows at any moment."""
    for seed in range(300):
        model = Model(random.Random(seed))
        for _ in range(120):
            model.step()
        model.finish(model.rng.choice((1, 2, 3)))
        assert {*model.logged} == {*range(LENGTH)}, seed
        for did in DIDS:
            assert model.first_times(did) == sorted(model.first_times(did)), seed
