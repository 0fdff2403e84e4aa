"""One repo in PostgreSQL: claimed, and events settled on it."""

from typing import Any

import psycopg

from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from schemas import wire
from schemas.settings import Settings
from steps.gate.batch import OffsetEvent
from steps.gate.model import Rules

DID = "did:plc:one"


def settings_for(database: str) -> Settings:
    return Settings(database=database)


def commit(rev: str, before: str, after: str, **ops: str | None) -> wire.CommitEvent:
    """One commit; `ops`: rkey → new cid, or None for a delete."""
    return wire.CommitEvent(
        seq=1,
        time="2026-01-01T00:00:00.000Z",
        did=DID,
        rev=rev,
        commit="c" + rev,
        commit_block="AAAA",
        data=after,
        prev_data=before,
        ops=[
            wire.Op(action="create" if cid else "delete", collection="c.o.l", rkey=rkey, cid=cid)
            for rkey, cid in ops.items()
        ],
    )


def create(attempt: int, rev: str, rkey: str, cid: str = "1") -> wire.CreateEvent:
    return wire.CreateEvent(
        did=DID, attempt=attempt, rev=rev, collection="c.o.l", rkey=rkey, cid=cid, time="t", commit="c" + rev
    )


def synced(attempt: int, rev: str, data: str, count: int) -> wire.RepoOutcome:
    return wire.RepoOutcome(
        did=DID, attempt=attempt, status="synced", active=True, time="t", rev=rev, commit="c", data=data, count=count
    )


def claimed(database: str, did: str = DID) -> RepoQueue:
    """A store whose worker has claimed the repo under attempt 1."""
    store = RepoQueue(settings_for(database))
    store.discover([ListedRepo(did)])
    assert store.claim([wire.RepoTask(did=did, attempt=0, reason="listed")], "w")
    return store


def settle(tables: IndexStore, *events: Any) -> None:
    with tables.transaction() as transaction:
        placed = [OffsetEvent(offset, event) for offset, event in enumerate(events)]
        apply_events(transaction, {DID: placed}, Rules())


def buffered_and_phase(db: psycopg.Connection[tuple[object, ...]]) -> tuple[object, object, object]:
    row = db.execute(
        "select (select count(*) from sluice.buffered_event), (select count(*) from sluice.record), phase from sluice.repo"
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]
