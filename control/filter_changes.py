"""The filter: show it, change it, and apply a change to the existing repos in bounded steps.

`change` stores the filter and returns when no index transaction uses the old one; the index and the listings use the new one at once.
The control process applies the change to existing repos (`FilterWalk`): repos outside the boundary stop (`excluded`, reason
`outside`); repos inside again, and those that lack records, are fetched (`pending`, reason `filter`). Rows outside
stay until an event on them, a fetch of their repo or `prune` removes them.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from connectors.postgres.connection import own_transaction
from schemas.errors import OperatorError
from schemas.filter_spec import FilterSpec, FilterState
from schemas.sql import queries
from steps.gate.filter_edits import FilterEdit
from steps.gate.filters import Filter, covers

SQL = queries("filter")
STEP_REPOS = 1000
PRUNE_REPOS = 100
STEP_SECONDS = 0.5
LAG_SECONDS = 10.0
"""Delay before repos that come inside are fetched: a replica of their PDS may lack the events dropped just before."""

logger = logging.getLogger("control")

Connection = psycopg.Connection[Any]


def show(db: Connection) -> FilterState:
    with db.cursor(row_factory=dict_row) as cursor:
        return FilterState.model_validate(cursor.execute(SQL["state"]).fetchone())


def change(db: Connection, wanted: FilterSpec | FilterEdit, main: FilterState | None = None) -> FilterState:
    """Set the filter, or edit it: concurrent edits wait for each other. An edit that changes nothing keeps the version.

    `main`: of the main database, in a shard. Raises OperatorError if the collections leave out the signal collection, or if
    the edit is not possible.
    """
    with own_transaction(db):
        db.execute(SQL["fence_alone"])
        before = show(db)
        spec = wanted if isinstance(wanted, FilterSpec) else wanted(current := spec_of(db, before))
        if isinstance(wanted, FilterEdit) and spec == current:
            return before
        _set(db, before, spec, main)
    after = show(db)
    fields = {
        "collections": " ".join(after.collections)[:500],
        "boundary": after.boundary,
        "signal": after.signal or "",
    }
    logger.info("the filter was changed", extra={"version": after.version, **fields})
    return after


def spec_of(db: Connection, state: FilterState) -> FilterSpec:
    """The filter with its DIDs. `state`: as `show` returned it."""
    dids = sorted(row[0] for row in db.execute(SQL["dids"]))
    return FilterSpec(collections=state.collections, boundary=state.boundary, dids=dids, signal=state.signal)


def _set(db: Connection, before: FilterState, spec: FilterSpec, main: FilterState | None) -> None:
    if spec.signal is not None and not Filter(collections=tuple(spec.collections)).keeps(spec.signal):
        raise OperatorError(f"the collections leave out the signal {spec.signal}; add it to them")
    collections = list(dict.fromkeys(spec.collections))
    values = {
        "collections": collections,
        "boundary": spec.boundary,
        "signal": spec.signal,
        "version": main and main.version,
        "set_at": main and main.set_at,
        "widened": not covers(before.collections, collections),
        "narrowed": not covers(collections, before.collections) or _excludes(db, before, spec),
    }
    db.execute(SQL["set"], values)
    db.execute(SQL["clear_dids"])
    if spec.dids:
        db.execute(SQL["add_dids"], {"dids": spec.dids})


def _excludes(db: Connection, before: FilterState, spec: FilterSpec) -> bool:
    """Whether the new boundary may exclude repos that the old one included. Their rows stay until they are pruned."""
    if spec.boundary == "all":
        return False
    if (spec.boundary, spec.signal) != (before.boundary, before.signal):
        return True
    return spec.boundary == "dids" and not {row[0] for row in db.execute(SQL["dids"])} <= set(spec.dids)


def prune(db: Connection) -> FilterState:
    """Start the removal of the rows outside; the control process carries it out."""
    db.execute(SQL["start_prune"])
    return show(db)


@dataclass(frozen=True, slots=True)
class WalkResult:
    """What a step did: repos moved outside, moved inside, to be fetched again; rows removed. `had_work`: there was work to do."""

    outside: int = 0
    inside: int = 0
    again: int = 0
    removed: int = 0
    had_work: bool = False

    @property
    def changed(self) -> bool:
        return bool(self.outside or self.inside or self.again or self.removed)


class FilterWalk:
    """Applies changes, a bounded piece per step. Safe to repeat and to interrupt anywhere."""

    def __init__(self, repos: int = STEP_REPOS, prune_repos: int = PRUNE_REPOS) -> None:
        self._repos = repos
        self._prune_repos = prune_repos

    def steps(self, db: Connection, seconds: float = STEP_SECONDS) -> None:
        """Steps for at most `seconds`. Raises psycopg.Error."""
        end = time.monotonic() + seconds
        while self.step(db).had_work and time.monotonic() < end:
            pass

    def step(self, db: Connection) -> WalkResult:
        """One piece. Raises psycopg.Error."""
        if db.execute(SQL["walks"]).fetchone() is None:
            return WalkResult()  # without the lock, which the disk would have to confirm
        with own_transaction(db):
            row = db.execute(SQL["walk_state"]).fetchone()
            if row is None or (row[0] is None and row[2] is None):
                return WalkResult()
            walk_after, again, prune_after, _, _, collections, _ = row
            walked = WalkResult() if walk_after is None else self._walk(db, walk_after, again=again)
            # not during the walk: it would miss the rows of repos that the walk moves outside later
            prunes = prune_after is not None and walk_after is None
            removed = self._prune(db, prune_after, collections) if prunes else 0
        done = WalkResult(walked.outside, walked.inside, walked.again, removed, had_work=prunes or walked.had_work)
        if done.changed:
            fields = {"outside": done.outside, "inside": done.inside, "again": done.again, "removed": done.removed}
            logger.info("filter applied", extra=fields)
        return done

    def _walk(self, db: Connection, after: str, *, again: bool) -> WalkResult:
        dids = [row[0] for row in db.execute(SQL["next_dids"], {"after": after, "limit": self._repos})]
        values = {"dids": dids, "delay": LAG_SECONDS}
        outside = db.execute(SQL["put_outside"], values).rowcount
        inside = db.execute(SQL["take_in"], values).rowcount
        fetched = db.execute(SQL["fetch_again"], values).rowcount
        row = db.execute(SQL["being_fetched"], values).fetchone()
        again = again or (row is not None and bool(row[0]))
        place: str | None = dids[-1] if dids else None
        if len(dids) < self._repos:
            place, again = ("", False) if again else (None, False)  # walk again for the repos that are being fetched
        db.execute(SQL["walked"], {"after": place, "again": again})
        return WalkResult(outside, inside, fetched, had_work=bool(place))

    def _prune(self, db: Connection, after: str, collections: list[str]) -> int:
        dids = [row[0] for row in db.execute(SQL["next_dids"], {"after": after, "limit": self._prune_repos})]
        values = {
            "dids": dids,
            "exact": [one for one in collections if not one.endswith("*")],
            "below": [one[:-1].replace("_", "\\_") + "%" for one in collections if one.endswith("*")],
        }
        ((removed,),) = db.execute(SQL["prune"], values).fetchall()
        db.execute(SQL["pruned"], {"after": dids[-1] if len(dids) == self._prune_repos else None})
        return int(removed)
