"""The gate's protocol under tens of thousands of random schedules (design §5). `--schedules N` runs more."""

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.model import gate_model
from tests.model.model_profile import FILTERED, LISTED, PRUNED

CHUNK = 500

FAULTS = {
    "a clock ahead",
    "a clock behind",
    "a relay restarts its sequence",
    "a relay loses an account event",
    "a relay that lags",
    "a relay's own takedown",
    "another order",
    "copy of another relay dropped",
    "read again",
    "a directory that lags",
    "attempt under two filters",
    "failed fetch",
    "false news",
    "filter changed during a backfill",
    "forged rev",
    "forged rev cleared",
    "given back",
    "index crashed before commit",
    "late or doubled event",
    "listed ahead of a backfill",
    "lost account event",
    "lost event",
    "lost event found by a listing",
    "lost task",
    "narrowed",
    "partition lost",
    "PDS went back",
    "pruned",
    "deferred by the hour's limit",
    "reaped",
    "reopened by its PDS",
    "replay",
    "requeued",
    "retention passed the index",
    "rewrite",
    "stale snapshot",
    "too large, or a block missing",
    "widened",
    "worker crashed with claims",
}
"""What the schedules must have done at least once for a run to mean something."""


RARE = {0: FILTERED, 3: LISTED, 5: PRUNED}
"""Three schedules in ten are about what rarely happens otherwise: filters that change, and are carried out, in the middle of
attempts, and what a PDS lists."""


def focus(seed: int) -> dict[str, float] | None:
    return RARE.get(seed % 10)


def play(first: int) -> tuple[Counter[str], int | None]:
    """CHUNK schedules; the faults that fired, and the first seed that violated an invariant."""
    fired: Counter[str] = Counter()
    for seed in range(first, first + CHUNK):
        try:
            fired.update(gate_model.run(seed, focus=focus(seed)).fired)
        except gate_model.Violation:
            return fired, seed
    return fired, None


@pytest.mark.timeout(1200)
def test_no_schedule_violates_an_invariant(schedules: int) -> None:
    """G1, G2, G4, G5, P1, P3, C1, C2, C4, N9: crashes, zombies, stale snapshots, lost, doubled and late events, filters, replays."""
    fired: Counter[str] = Counter()
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("fork")) as pool:
        for counted, seed in pool.map(play, range(0, schedules, CHUNK)):
            fired.update(counted)
            if seed is not None:
                pool.shutdown(cancel_futures=True)
                with pytest.raises(gate_model.Violation) as violation:
                    gate_model.run(seed, focus=focus(seed), trace=True)
                pytest.fail(str(violation.value))
    missing = FAULTS - {name for name, count in fired.items() if count}
    assert not missing, f"these faults never fired: {missing}"


def test_a_seed_plays_the_same_schedule_twice() -> None:
    """A violation can be looked at again."""
    once, again = (gate_model.run(4711, trace=True).said for _ in range(2))
    assert once == again
    assert len(once) > 40
