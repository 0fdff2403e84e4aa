"""Every state of a repo × every change of the boundary, on a real database: what is outside stays outside, what is inside is kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from connectors.postgres.repo_queue import ListedRepo
from control.filter_changes import FilterWalk
from protocol.syntax import tid_from_micros
from schemas import wire
from tests.filters.test_filtered_index import LIKE, POST, Bed, commit, created, op, outcome
from tests.support.postgres import fresh_database
from tests.support.size import sized
from tests.support.writable_records import make_writable

TAKEN_DOWN = ("takendown", "suspended")


@dataclass(frozen=True, slots=True)
class State:
    """A row of sluice.repo, and whether the repo exists in the network."""

    phase: str
    reason: str
    active: bool = True
    status: str | None = None
    served: bool = True

    @property
    def name(self) -> str:
        return f"{self.phase}-{self.reason}-{self.status or ''}{'' if self.active else '-hidden'}"


STATES = [
    State("pending", "listed"),
    State("pending", "desync"),
    State("pending", "deletion", active=False, status="deactivated", served=False),
    State("pending", "deletion", active=False, status="deleted"),
    State("backfill", "listed"),
    State("backfill", "deletion", active=False, status="deleted", served=False),
    State("sync", "synced"),
    State("sync", "synced", status="throttled"),
    State("failed", "desync"),
    State("failed", "deletion", active=False, status="deactivated"),
    State("unavailable", "deactivated", active=False, status="deactivated", served=False),
    State("unavailable", "deleted", active=False, status="deleted", served=False),
    State("unavailable", "takendown", active=False, status="takendown"),
    State("unavailable", "suspended", active=False, status="suspended"),
    State("unavailable", "inactive", active=False, status="inactive"),
    State("unavailable", "not_found", served=False),
]
REPOS = {f"did:plc:{number:02}{kind}": (state, kind) for number, state in enumerate(STATES) for kind in "abcd"}
"""Kinds: `a` and `b` are named by the list of DIDs; `a` and `c` have a record of the signal collection."""
NAMED = [did for did, (_, kind) in REPOS.items() if kind in "ab"]
OTHERS = [did for did, (_, kind) in REPOS.items() if kind in "bd"]

CHANGES: dict[str, dict[str, Any]] = {
    "all": {},
    "named": {"boundary": "dids", "dids": NAMED},
    "others": {"boundary": "dids", "dids": OTHERS},
    "signal": {"boundary": "collection", "signal": POST},
    "posts": {"collections": [POST]},
}
EVENTS = ("reactivated", "commit", "relay lists", "PDS lists", "operator retries", "desync")


ROW = """
insert into sluice.repo (did, phase, reason, active, status, attempt, rev, data, worker, lease_until, started_at, completed_at,
                         discovered_at, first_attempt)
values (%(did)s, %(phase)s, %(reason)s, %(active)s, %(status)s, 1, %(rev)s, nullif(%(rev)s, ''), 'w',
        case when %(phase)s = 'backfill' then now() + interval '1 hour' end, now() - interval '1 day',
        case when %(ended)s then now() end, now() - interval '2 days', 1)
"""


def paths_of(did: str) -> list[str]:
    """Collections of the repo's records, each with one."""
    return [LIKE, POST] if REPOS[did][1] in "ac" else [LIKE]


class World(Bed):
    """A database with every state, and the network's answers to its fetches."""

    def __init__(self, database: str) -> None:
        super().__init__(database)
        make_writable(database)
        self.walker = FilterWalk()

    def reset(self) -> None:
        with self.db.transaction(), self.db.pipeline():
            self._fill()

    def _fill(self) -> None:
        self.db.execute("truncate sluice.repo, sluice.record_row, sluice.buffered_event, sluice.filter_did")
        self.db.execute("delete from sluice.filter")
        self.db.execute("insert into sluice.filter default values")
        self.taken_down = {did for did, (state, _) in REPOS.items() if state.status in TAKEN_DOWN}
        self.gone = {did for did, (state, _) in REPOS.items() if not state.served}
        self.offset = self.revs = 0
        for did, (state, _) in REPOS.items():
            fetched = state.reason not in ("listed", "deleted", "not_found")
            values = {
                "did": did,
                **{name: getattr(state, name) for name in ("phase", "reason", "active", "status")},
                "rev": "3a22222222222" if fetched else "",
                "ended": state.phase in ("sync", "failed", "unavailable"),
            }
            self.db.execute(ROW, values)
            for path in paths_of(did) if fetched else []:
                self.db.execute(
                    "insert into sluice.record (did, collection, rkey, cid, rev, attempt, json)"
                    " values (%s, %s, 'self', 'cid', '3a22222222222', 1, '{}')",
                    (did, path),
                )

    def next_rev(self) -> str:
        self.revs += 1
        return tid_from_micros((1 << 50) + (7 << 45) + self.revs)

    def answer(self, did: str, attempt: int) -> list[Any]:
        """The events of an attempt's end: what the PDS has."""
        if did in self.gone:
            return [
                wire.RepoOutcome(time="", did=did, attempt=attempt, status="deleted", active=False, reason="deleted")
            ]
        paths, rev = paths_of(did), self.next_rev()
        return [*(created(did, attempt, rev, path) for path in paths), outcome(did, attempt, rev, len(paths))]

    def settle(self) -> None:
        """Walk and fetch until nothing changes."""
        for _ in range(60):
            while self.walker.step(self.db).had_work:
                pass
            self.db.execute("update sluice.repo set next_retry_at = now() where phase = 'pending'")
            rows = self.db.execute("select did, attempt from sluice.repo where phase = 'pending'").fetchall()
            self.store.claim([wire.RepoTask(did=did, attempt=at, reason="test") for did, at in rows], "w")
            open_attempts = "select did, attempt from sluice.repo where phase = 'backfill' order by did"
            fetching = self.db.execute(open_attempts).fetchall()
            self.feed(*itertools.chain.from_iterable(self.answer(*one) for one in fetching))
            if not fetching and not self.state().walking:
                return
        raise AssertionError(self.db.execute("select did, phase, reason, active from sluice.repo").fetchall())

    def happens(self, event: str) -> None:
        """To every repo at once."""
        self.offset += 1
        dids = sorted(REPOS)
        seq = self.offset
        if event == "reactivated":
            self.gone -= set(dids)
            self.taken_down -= set(dids)
            time = f"2026-01-01T00:00:{seq % 60:02}.000Z"
            self.feed(
                *(wire.AccountEvent(seq=seq, time=time, did=did, active=True, status=None, relay="r") for did in dids)
            )
        elif event in ("commit", "desync"):
            rev, since = self.next_rev(), "3a22222222222" if event == "commit" else "never"
            self.feed(*(commit(did, rev, since, op("create", LIKE)) for did in dids))
        elif event == "relay lists":
            self.store.discover([ListedRepo(did) for did in dids if did not in self.gone | self.taken_down])
        elif event == "PDS lists":
            self.store.discover([ListedRepo(did, host="https://pds.test") for did in dids if did not in self.gone])
        else:
            self.store.retry_failed(None)


def inside(change: str, did: str) -> bool:
    kind = REPOS[did][1]
    return {"named": kind in "ab", "others": kind in "bd"}.get(change, True)


def check(world: World, change: str, *, end: bool = False) -> None:
    """What must hold after a change has been carried out. `end`: every account is active again, and no repo was given up."""
    rows = world.db.execute("select did, phase, reason, active, status from sluice.repo").fetchall()
    outside = {did for did, phase, reason, _, _ in rows if (phase, reason) == ("excluded", "outside")}
    records = {did for (did,) in world.db.execute("select distinct did from sluice.record")}
    for did, phase, reason, active, status in rows:
        if change == "signal":  # what was never fetched has nothing that proves it inside
            assert (did in outside) == (did not in proven(world)), (did, phase, reason)
        else:
            assert (did in outside) == (not inside(change, did)), (did, phase, reason)
        if did in outside:
            continue
        if end:
            assert (phase, active) == ("sync", True), (did, phase, reason, status)
        if did in world.taken_down:
            assert not active, (did, phase, reason, status)
    state = world.state()
    assert state.outside == len(outside)
    if outside & records:
        assert not state.clean


def proven(world: World) -> set[str]:
    rows = world.db.execute("select distinct did from sluice.record where collection = %s", (POST,))
    return {did for (did,) in rows}


@pytest.fixture(scope="module")
def world(postgres: str, migrated_template: str) -> Iterator[World]:
    with fresh_database(postgres, migrated_template) as database:
        one = World(database)
        yield one
        one.close()


def play(world: World, steps: list[str]) -> None:
    """Changes and events in this order, all of them on every state; then the walk, and what must hold."""
    world.reset()
    last = "all"
    for step in steps:
        if step in CHANGES:
            more = dict(CHANGES[step])
            world.set(*more.pop("collections", ["*"]), **more)
            last = step
        else:
            world.happens(step)
    world.settle()
    check(world, last)
    world.happens("reactivated")
    world.happens("relay lists")
    world.happens("operator retries")
    world.settle()
    check(world, last, end=True)


PAIRS = [list(pair) for pair in itertools.product(CHANGES, CHANGES)]


@pytest.mark.parametrize("steps", PAIRS, ids="-".join)
def test_every_state_follows_every_change(world: World, steps: list[str]) -> None:
    """N9."""
    play(world, steps)


@settings(max_examples=sized(8, 25), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([*CHANGES, *EVENTS]), min_size=1, max_size=6))
@example(["named", "reactivated"])
@example(["signal", "desync"])
@example(["named", "all", "PDS lists"])
def test_every_state_follows_changes_among_events(world: World, steps: list[str]) -> None:
    """N9: whatever happens between the change and the walk."""
    play(world, steps)
