"""Transactions of the index on PostgreSQL: what a cut, a concurrent claim and many buffered events leave."""

from typing import Any

import msgspec
import psycopg
import pytest

from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from connectors.runtime import metrics
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from schemas import wire
from steps.gate.batch import OffsetEvent
from steps.gate.batch import settle as settle_rounds
from steps.gate.model import Rules
from tests.model.settled_tables import DID, buffered_and_phase, claimed, commit, create, settings_for, settle, synced

ONE, TWO = "3l22222222222", "3l33333333333"  # revs


def settle_and_cut(tables: IndexStore, admin: psycopg.Connection[tuple[object, ...]], events: tuple[Any, ...]) -> None:
    """Everything is written; then, before the commit, the server ends the connection."""
    with tables.transaction() as transaction:
        apply_events(transaction, {DID: [OffsetEvent(offset, event) for offset, event in enumerate(events)]}, Rules())
        assert transaction.db.execute("select phase, buffered from sluice.repo").fetchone() == ("sync", 0)
        assert transaction.db.execute("select count(*) from sluice.buffered_event").fetchone() == (0,)
        admin.execute("select pg_terminate_backend(%s)", (transaction.db.info.backend_pid,))
        transaction.db.execute("select 1")


def test_a_cut_between_transition_and_release_leaves_neither_half(database: str) -> None:
    """P5, P2: the connection is killed after the buffered events were applied and before the commit; then it is done again."""
    claimed(database).close()
    tables = IndexStore(settings_for(database), "c", None)
    settle(tables, commit(TWO, "one", "two", b="2"))
    end = (create(1, ONE, "a"), synced(1, ONE, "one", 1))
    with psycopg.connect(database, autocommit=True) as db:
        assert buffered_and_phase(db) == (1, 0, "backfill")
        with pytest.raises(psycopg.OperationalError):
            settle_and_cut(tables, db, end)
        assert buffered_and_phase(db) == (1, 0, "backfill")
        settle(tables, *end)
        assert buffered_and_phase(db) == (0, 2, "sync")
        assert db.execute("select rev, data from sluice.repo").fetchone() == (TWO, "two")


def test_rows_that_are_there_after_all_are_upserted_and_counted(database: str) -> None:
    """A COPY of first rows that meets one of them falls back to the upsert, and nothing else is undone."""
    claimed(database).close()
    tables = IndexStore(settings_for(database), "c", None)
    before = metrics.COPY_FALLBACKS._value.get()
    settle(tables, create(1, ONE, "a", "old"))
    assert metrics.COPY_FALLBACKS._value.get() == before
    settle(tables, create(1, ONE, "a", "new"), create(1, ONE, "b"), synced(1, ONE, "one", 2))
    assert metrics.COPY_FALLBACKS._value.get() == before + 1
    with psycopg.connect(database) as db:
        assert db.execute("select rkey, cid from sluice.record order by rkey").fetchall() == [("a", "new"), ("b", "1")]
        assert buffered_and_phase(db) == (0, 2, "sync")


def test_an_event_that_waited_for_a_claim_ends_no_earlier_than_it_began(database: str) -> None:
    """T1: the index's transaction began before the claim that it waited for; completed_at follows started_at all the same."""
    store = RepoQueue(settings_for(database))
    store.discover([ListedRepo(DID)])
    tables = IndexStore(settings_for(database), "c", None)
    takendown = wire.AccountEvent(seq=1, time="t", did=DID, active=False, status="takendown")
    with tables.transaction() as transaction:
        transaction.db.execute("select now()")  # the transaction's time is fixed from here on
        assert store.claim([wire.RepoTask(did=DID, attempt=0, reason="listed")], "w")
        apply_events(transaction, {DID: [OffsetEvent(0, takendown)]}, Rules())
    with psycopg.connect(database) as db:
        row = db.execute("select phase, completed_at >= started_at from sluice.repo").fetchone()
    assert row == ("unavailable", True)
    store.close()


def test_buffered_events_are_loaded_for_as_many_repos_as_memory_allows(database: str) -> None:
    """G6: each repo's are bounded, but many repos may end in one batch; all of them are settled, round by round."""
    dids = [f"did:plc:{number}" for number in range(4)]
    store, tables = claimed(database, dids[0]), IndexStore(settings_for(database), "c", None)
    assert len(store.claim(store.discover([ListedRepo(did) for did in dids[1:]]).tasks, "w")) == 3
    later = [wire.SyncEvent(seq=1, time="t", did=did, rev="3k5", data="root") for did in dids]
    with tables.transaction() as transaction:
        size = len(wire.encode(later[0]))
        apply_events(transaction, {event.did: [OffsetEvent(7, event, size)] for event in later}, Rules())
        buffered = transaction.db.execute("select buffered, buffered_bytes from sluice.repo").fetchall()
        assert buffered == [(1, size)] * 4
        awaiting = dict.fromkeys(dids, 1)
        assert [list(transaction.facts(awaiting, most)) for most in (1, size, 3 * size, 99 * size)] == [
            dids[:1],
            dids[:1],
            dids[:3],
            dids,
        ]
    few = wire.RepoOutcome(
        did="", attempt=1, status="synced", active=True, time="t", rev="3k2", commit="c", data="root", count=0
    )
    with tables.transaction() as transaction:
        queues = {did: [OffsetEvent(0, msgspec.structs.replace(few, did=did))] for did in dids}
        settling, rounds = settle_rounds(transaction.lock(dids), queues), 0
        work = next(settling)
        try:
            while True:
                transaction.write(work)
                work, rounds = settling.send(transaction.facts(work.awaiting, size)), rounds + 1
        except StopIteration as end:
            after = end.value
    assert {repo.rev for repo in after.values()} == {"3k5"}
    assert rounds == 4
    store.close()
