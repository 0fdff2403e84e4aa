"""The model's database and the real one are the same: what the model proves of the one holds for the other."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import msgspec
import psycopg
import pytest

from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from connectors.runtime import metrics
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from schemas import wire
from schemas.settings import Settings
from steps.gate.batch import OffsetEvent
from steps.gate.batch import settle as settle_rounds
from steps.gate.model import Rules
from tests.model import gate_model
from tests.model.model_profile import FILTERED, LISTED, PRUNED
from tests.model.model_sql import SqlTables, Twin
from tests.model.test_gate_model import FAULTS
from tests.support.size import sized

DID = "did:plc:one"
SHARE = 100  # of the schedules of the model, one in so many is played on PostgreSQL too
PLAIN = (
    *(952, 1348, 242, 1355, 31, 305, 455, 125, 416, 911, 49, 482, 601, 12, 829, 265, 401, 447, 167, 501, 547, 717, 838),
    *(910, 202, 243, 334, 574, 620, 670, 727, 811, 918, 968, 55, 358, 591, 1047, 1214),
)
"""Seeds of 1,500 that together have every kind of change that any of these has: operation, phase and reason before and after."""


@pytest.fixture
def sql(database: str) -> Iterator[SqlTables]:
    tables = SqlTables(database)
    yield tables
    tables.close()


def chosen(schedules: int) -> Iterator[tuple[int, Mapping[str, float] | None]]:
    """Seeds and focus: in `make test` few schedules that differ much, in `make test-long` many as well."""
    yield from ((seed, None) for seed in PLAIN)
    yield from ((seed, FILTERED) for seed in (90, 121))
    yield 26, LISTED
    yield from ((seed, PRUNED) for seed in (11, 56, 67, 80))
    yield from sized([], [(seed, None) for seed in range(max(100, schedules // SHARE))])


@pytest.mark.timeout(1200)
def test_schedules_leave_the_same_rows_in_postgresql(sql: SqlTables, schedules: int) -> None:
    """G1, P2, C1, C2, N9: claims, reaping, buffered events, outcomes, filters and offsets, transaction by transaction."""
    fired: Counter[str] = Counter()
    compared = 0
    for seed, focus in chosen(schedules):
        twin = Twin(sql)
        fired.update(gate_model.run(seed, tables=twin, focus=focus).fired)
        compared += twin.compared
    assert compared > 1000
    missing = FAULTS - {name for name, count in fired.items() if count}
    assert not missing, f"these faults never fired: {missing}"


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
        "select (select count(*) from sluice.held_event), (select count(*) from sluice.record), phase from sluice.repo"
    ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def settle_and_cut(tables: IndexStore, admin: psycopg.Connection[tuple[object, ...]], events: tuple[Any, ...]) -> None:
    """Everything is written; then, before the commit, the server ends the connection."""
    with tables.transaction() as transaction:
        apply_events(transaction, {DID: [OffsetEvent(offset, event) for offset, event in enumerate(events)]}, Rules())
        assert transaction.db.execute("select phase, held from sluice.repo").fetchone() == ("sync", 0)
        assert transaction.db.execute("select count(*) from sluice.held_event").fetchone() == (0,)
        admin.execute("select pg_terminate_backend(%s)", (transaction.db.info.backend_pid,))
        transaction.db.execute("select 1")


def test_a_cut_between_transition_and_release_leaves_neither_half(database: str) -> None:
    """P5, P2: the connection is killed after the buffered events were applied and before the commit; then it is done again."""
    claimed(database).close()
    tables = IndexStore(settings_for(database), "c", None)
    settle(tables, commit("2", "one", "two", b="2"))
    end = (create(1, "1", "a"), synced(1, "1", "one", 1))
    with psycopg.connect(database, autocommit=True) as db:
        assert buffered_and_phase(db) == (1, 0, "backfill")
        with pytest.raises(psycopg.OperationalError):
            settle_and_cut(tables, db, end)
        assert buffered_and_phase(db) == (1, 0, "backfill")
        settle(tables, *end)
        assert buffered_and_phase(db) == (0, 2, "sync")
        assert db.execute("select rev, data from sluice.repo").fetchone() == ("2", "two")


def test_rows_that_are_there_after_all_are_upserted_and_counted(database: str) -> None:
    """A COPY of first rows that meets one of them falls back to the upsert, and nothing else is undone."""
    claimed(database).close()
    tables = IndexStore(settings_for(database), "c", None)
    before = metrics.COPY_FALLBACKS._value.get()
    settle(tables, create(1, "1", "a", "old"))
    assert metrics.COPY_FALLBACKS._value.get() == before
    settle(tables, create(1, "1", "a", "new"), create(1, "1", "b"), synced(1, "1", "one", 2))
    assert metrics.COPY_FALLBACKS._value.get() == before + 1
    with psycopg.connect(database) as db:
        assert db.execute("select rkey, cid from sluice.record order by rkey").fetchall() == [("a", "new"), ("b", "1")]
        assert buffered_and_phase(db) == (0, 2, "sync")


def test_eight_workers_with_the_same_messages_claim_each_repo_once(database: str) -> None:
    """C2: real connections, at the same moment, in orders of their own."""
    dids = [f"did:plc:{number:04d}" for number in range(500)]
    first = RepoQueue(settings_for(database))
    first.discover([ListedRepo(did) for did in dids])
    first.close()
    start, claims, failures = threading.Barrier(8), [], []

    def work(number: int) -> None:
        store = RepoQueue(settings_for(database))
        tasks = [wire.RepoTask(did=did, attempt=0, reason="listed") for did in Random(number).sample(dids, len(dids))]
        try:
            store._database()
            start.wait(30)
            for begin in range(0, len(tasks), 25):
                claims.extend(store.claim(tasks[begin : begin + 25], f"w{number}"))
        except Exception as err:
            failures.append(err)
        finally:
            store.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert sorted(claim.did for claim in claims) == dids
    assert {claim.attempt for claim in claims} == {1}


def test_the_database_refuses_a_status_that_hides_beside_an_active_account(database: str) -> None:
    """From any writer. Of a listing with both, `active` decides."""
    store = RepoQueue(settings_for(database))
    listed = {"did:plc:a": "takendown", "did:plc:b": "throttled", "did:plc:c": None}
    store.discover([ListedRepo(did, active=True, status=status) for did, status in listed.items()])
    store.discover([ListedRepo("did:plc:d", active=False)])
    with psycopg.connect(database, autocommit=True) as db:
        rows = db.execute("select did, active, status from sluice.repo order by did").fetchall()
        assert rows == [
            ("did:plc:a", True, None),
            ("did:plc:b", True, "throttled"),
            ("did:plc:c", True, None),
            ("did:plc:d", False, "inactive"),
        ]
        for status in ("takendown", "suspended", "deactivated", "deleted"):
            with pytest.raises(psycopg.errors.CheckViolation):
                db.execute("update sluice.repo set status = %s where did = 'did:plc:a'", (status,))
        db.execute("update sluice.repo set status = 'desynchronized' where did = 'did:plc:a'")
    store.close()


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


def test_what_only_a_listing_closed_a_listing_reopens_at_once(database: str) -> None:
    """An #account that went out before we listened is lost; what the network itself has said holds for an hour."""
    store = RepoQueue(settings_for(database))
    store.discover([ListedRepo(DID, active=False, status="deactivated")])
    assert store.phases() == {"unavailable": 1}
    store.discover([ListedRepo(DID, active=True)])
    assert store.phases() == {"pending": 1}
    tables = IndexStore(settings_for(database), "c", None)
    settle(tables, wire.AccountEvent(seq=1, time="t", did=DID, active=False, status="takendown"))
    store.discover([ListedRepo(DID, active=True)])
    assert store.phases() == {"unavailable": 1}
    store.close()


@pytest.mark.parametrize("status", ["deleted", "deactivated", "something-of-tomorrow"])
def test_a_listing_tells_of_an_account_event_that_was_lost(database: str, status: str) -> None:
    """G5: a repo in sync that a relay lists as inactive is hidden, and waits for its PDS to confirm, as after an #account."""
    store = claimed(database)
    settle(IndexStore(settings_for(database), "c", None), synced(1, "3k2", "root", 0))
    store.discover([ListedRepo(DID, active=True)])
    assert store.phases() == {"sync": 1}
    store.discover([ListedRepo(DID, active=False, status=status)])
    with psycopg.connect(database) as db:
        row = db.execute("select phase, reason, active, status from sluice.repo").fetchone()
    assert row == ("pending", "deletion", False, status)
    assert [task.did for task in store.due(10)] == [DID]
    store.close()


@pytest.mark.parametrize("status", ["takendown", "suspended"])
def test_a_relays_takedown_that_only_a_listing_tells_of_is_not_asked_for_at_the_pds(database: str, status: str) -> None:
    """G5: the PDS serves what its relay has taken down, and would bring it back; a running backfill is fenced as well."""
    store = claimed(database)
    tables = IndexStore(settings_for(database), "c", None)
    settle(tables, synced(1, "3k2", "root", 0))
    other = "did:plc:other"
    assert store.claim(store.discover([ListedRepo(other)]).tasks, "w")
    with tables.transaction() as transaction:
        buffered = wire.SyncEvent(seq=1, time="t", did=other, rev="3k5", data="later")
        apply_events(transaction, {other: [OffsetEvent(7, buffered)]}, Rules())
    store.discover([ListedRepo(DID, "3k4", False, status), ListedRepo(other, "3k4", False, status)])
    with psycopg.connect(database) as db:
        rows = db.execute(
            "select phase, reason, active, status, heard_rev, held, completed_at >= started_at from sluice.repo order by did"
        ).fetchall()
        assert buffered_and_phase(db)[0] == 0
    assert rows == [("unavailable", status, False, status, rev, 0, True) for rev in ("3k4", "3k5")]
    assert store.due(10) == []
    assert store.retry(other, 1, "too late", 0.0) is None
    store.discover([ListedRepo(DID), ListedRepo(other)])
    assert store.phases() == {"unavailable": 2}
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("update sluice.repo set phase_since = now() - interval '2 hours'")
    store.discover([ListedRepo(DID), ListedRepo(other)])
    assert store.phases() == {"pending": 2}
    store.close()


def test_a_pds_that_lists_a_repo_does_not_reopen_it_by_itself(database: str) -> None:
    """G5: only the PDS that the DID document names is listened to, and what it lists is hidden until it has been served."""
    store = claimed(database)
    tables = IndexStore(settings_for(database), "c", None)
    here, elsewhere = ListedRepo(DID, host="https://pds.test"), ListedRepo(DID, host="https://evil.test")
    row = "select phase, reason, active, status from sluice.repo"
    with psycopg.connect(database, autocommit=True) as db:

        def listed(entry: ListedRepo) -> object:
            db.execute("update sluice.repo set phase_since = now() - interval '2 hours'")
            store.discover([entry])
            return db.execute(row).fetchone()

        gone = wire.RepoOutcome(did=DID, attempt=1, status="unavailable", active=False, time="t", reason="not_found")
        settle(tables, gone)
        away = ("unavailable", "not_found", False, "not_found")
        assert listed(elsewhere) == listed(here) == away
        db.execute("insert into sluice.identity (did, pds) values (%s, 'https://pds.test')", (DID,))
        assert listed(elsewhere) == away
        assert listed(here) == ("pending", "deletion", False, "not_found")
        (task,) = store.due(10)
        (claim,) = store.claim([task], "w")
        assert (claim.attempt, claim.reason) == (2, "deactivation")
        served = wire.RepoOutcome(
            did=DID,
            attempt=2,
            status="synced",
            active=True,
            time="t",
            rev="3k2",
            commit="c",
            data="root",
            count=0,
            host="https://pds.test",
        )
        settle(tables, served)
        assert db.execute(row).fetchone() == ("sync", "synced", True, None)
        settle(tables, wire.AccountEvent(seq=1, time="t", did=DID, active=False, status="takendown"))
        assert listed(here) == listed(elsewhere) == ("unavailable", "takendown", False, "takendown")
        db.execute("delete from sluice.identity")
        db.execute("update sluice.repo set reason = 'not_found', status = 'not_found'")
        assert listed(elsewhere) == away
        assert listed(here) == ("pending", "deletion", False, "not_found")
    store.close()


def test_what_a_listing_says_of_a_repo_that_is_being_fetched_is_remembered(database: str) -> None:
    """G1: the snapshot may be older than the list; and a repo that leaves `sync` meanwhile has seen it."""
    store = claimed(database)
    tables = IndexStore(settings_for(database), "c", None)
    store.discover([ListedRepo(DID, "3k9")])
    assert store.lost_events(0.0) == []
    settle(tables, synced(1, "3k2", "root", 0))
    assert store.lost_events(600.0) == []
    assert store.lost_events(0.0) == [DID]
    with psycopg.connect(database, autocommit=True) as db:
        row = "select phase, reason, heard_rev, listed_rev from sluice.repo"
        assert db.execute(row).fetchone() == ("pending", "lost_event", "3k9", None)
        assert store.claim(store.due(10), "w")
        settle(tables, synced(2, "3k9", "nine", 0))
        store.discover([ListedRepo(DID, "3ka")])
        settle(tables, commit("3kb", "another root", "eleven"))
        store.lost_events(600.0)
        assert db.execute(row).fetchone() == ("pending", "desync", "3kb", None)
        assert store.claim(store.due(10), "w")
        settle(tables, synced(3, "3kb", "eleven", 0))
        store.discover([ListedRepo(DID, "3kd")])
        settle(tables, commit("3kc", "another root", "twelve"))
        store.lost_events(600.0)
        assert db.execute(row).fetchone() == ("pending", "desync", "3kd", None)
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
        buffered = transaction.db.execute("select held, held_bytes from sluice.repo").fetchall()
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
