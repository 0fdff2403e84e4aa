"""Which actions and faults a schedule of the gate's model consists of, and how often: drawn for every seed."""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Profile:
    """How often each fault and action happens, as weights. Drawn for every seed, so some are absent."""

    weights: dict[str, float]
    loss: float
    stale: float
    unwell: float
    crash: float
    empty: float
    repos: int
    relays: int
    steps: int
    lagging: bool  # the last of several relays
    skewed: bool  # clocks of PDSes are wrong


FAULTS = {
    "rewrite": 1.0,
    "forge": 0.3,
    "go_back": 0.2,
    "odd_commit": 0.6,
    "account": 2.0,
    "false_news": 0.6,
    "identity": 1.0,
    "pds_listing": 0.5,
    "sync": 1.5,
    "again": 2.0,
    "burst": 0.7,
    "crash_worker": 1.0,
    "stop_worker": 0.6,
    "zombie_index": 1.0,
    "rebalance": 0.7,
    "rewind_tasks": 0.7,
    "replay": 0.6,
    "filter": 1.0,
    "truncate": 0.25,
    "leap": 0.5,
    "clock": 1.0,
    "takedown": 1.5,
    "restart": 0.4,
    "reread": 0.7,
}
WORK = {
    "write": 7.0,
    "deliver": 9.0,
    "listing": 2.0,
    "control": 4.0,
    "claim": 4.0,
    "fetch": 4.0,
    "produce": 6.0,
    "index": 9.0,
    "renew": 0.5,
    "pass_time": 4.0,
}
UNDISTURBED: dict[str, float] = {
    "loss": 0.0,
    "again": 0,
    "rewrite": 0,
    "forge": 0,
    "go_back": 0,
    "odd_commit": 0,
    "truncate": 0,
}
"""Focus of a schedule whose chains always fit."""
FILTERED = UNDISTURBED | {"account": 0, "leap": 0, "crash_worker": 0, "stop_worker": 0, "rebalance": 0, "unwell": 0.0}
FILTERED |= {"stale": 0.0, "steps": 110, "filter": 6, "control": 12, "claim": 8, "fetch": 8, "index": 14, "replay": 8}
"""Focus: the filter changes in the middle of attempts."""
PRUNED = FILTERED | {"filter": 12, "control": 40, "claim": 16, "fetch": 16, "replay": 4, "repos": 1, "empty": 0.0}
"""Focus: and it is carried out at once."""
PRUNED_TWICE = PRUNED | {"filter": 16, "control": 80, "index": 8, "produce": 4, "claim": 20, "fetch": 20, "write": 20}
PRUNED_TWICE |= {"replay": 0, "zombie_index": 0, "pds_listing": 0, "false_news": 0, "takedown": 0, "identity": 0}
PRUNED_TWICE |= {"restart": 0, "reread": 0, "clock": 0, "sync": 0, "rewind_tasks": 0, "pass_time": 1, "listing": 4}
PRUNED_TWICE |= {"crash": 0.0, "steps": 200}
"""Focus: and a second filter prunes what the first one kept of an open attempt."""
LISTED = {"pds_listing": 6.0, "unwell": 0.3, "account": 4.0, "steps": 110}
"""Focus: a PDS lists repos that were not found."""


def draw_profile(rng: Random) -> Profile:
    """Each fault is off in half of the schedules: rare combinations then happen within few steps."""
    weights = {name: weight * rng.choice((0.4, 1.0, 1.0, 2.0)) for name, weight in WORK.items()}
    weights |= {name: weight * rng.choice((1.0, 2.5)) for name, weight in FAULTS.items() if rng.random() < 0.45}
    return Profile(
        weights,
        loss=rng.choice((0.0, 0.0, 0.1, 0.3)),
        stale=rng.choice((0.0, 0.0, 0.3, 0.6)),
        unwell=rng.choice((0.0, 0.0, 0.1, 0.3)),
        crash=rng.choice((0.0, 0.05, 0.2)),
        empty=rng.choice((0.0, 0.5)),
        repos=rng.choice((1, 1, 1, 2, 3)),
        relays=rng.choice((1, 1, 2)),
        steps=rng.choice((40, 70, 110)),
        lagging=rng.random() < 0.3,
        skewed=rng.random() < 0.4,
    )
