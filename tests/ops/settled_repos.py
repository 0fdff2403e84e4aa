"""Snapshots of small signed repos put into a database through the gate, as the index does: for tests of what tables hold."""

from __future__ import annotations

from collections.abc import Iterable

from flows.backfill.encode import Attempt, create_messages, synced_outcome
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from protocol.car import index_bytes
from schemas import wire
from schemas.settings import Settings
from steps.gate.batch import OffsetEvent
from steps.gate.model import Rules
from tests.support.opened_snapshot import open_snapshot
from tests.support.tiny_repo import Repo, car

TIME = "2026-01-01T00:00:00.000Z"
LIMIT = 16 * 1024 * 1024


def messages_of(repo: Repo, number: int = 1) -> list[bytes]:
    """The attempt's messages: every record, and the outcome."""
    key = repo.key.did_key
    snapshot = open_snapshot(index_bytes(car(repo.commit, repo.blocks)), repo.did, key)
    attempt = Attempt(repo.did, number, TIME, signing_key=key)
    return [*create_messages(snapshot, attempt, LIMIT), synced_outcome(snapshot.head, attempt, snapshot.count)]


def settle_events(settings: Settings, queues: dict[str, list[object]]) -> None:
    """Events by DID, in one transaction of the index, without offsets."""
    tables = IndexStore(settings, "test", None)
    placed = {did: [OffsetEvent(at, event) for at, event in enumerate(events)] for did, events in queues.items()}
    with tables.transaction() as transaction:
        apply_events(transaction, placed, Rules())
    tables.close()


def settle_repos(settings: Settings, repos: Iterable[Repo], number: int = 1) -> None:
    """Each repo's snapshot as an attempt; the rows stand in `sync` afterwards."""
    settle_events(
        settings, {repo.did: [wire.decode_backfill(value) for value in messages_of(repo, number)] for repo in repos}
    )
