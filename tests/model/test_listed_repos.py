"""Repos in PostgreSQL as claims and listings leave them."""

import threading
from random import Random

import psycopg
import pytest
from msgspec.structs import replace

from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from schemas import wire
from steps.gate.batch import OffsetEvent
from steps.gate.model import Rules
from tests.model.settled_tables import DID, buffered_and_phase, claimed, commit, settings_for, settle, synced


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
def test_a_listing_recovers_a_lost_account_event(database: str, status: str) -> None:
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
def test_a_takedown_by_a_relay_that_only_a_listing_has_is_not_confirmed_at_the_pds(database: str, status: str) -> None:
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
            "select phase, reason, active, status, seen_rev, buffered, completed_at >= started_at from sluice.repo order by did"
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


def test_a_page_requested_before_a_takedown_was_lifted_does_not_bring_it_back(database: str) -> None:
    """G5: a page waits while the flow is behind; the #account that ended the takedown may be applied meanwhile."""
    store = claimed(database)
    tables = IndexStore(settings_for(database), "c", None)
    settle(tables, synced(1, "3k2", "root", 0))
    settle(tables, wire.AccountEvent(seq=1, time="t1", did=DID, active=False, status="takendown"))
    requested = store.now() + 1.0  # as late as the clocks of two servers allow
    settle(tables, wire.AccountEvent(seq=2, time="t2", did=DID, active=True))
    assert store.claim(store.due(1), "w")
    page = [ListedRepo(DID, "3k2", False, "takendown")]
    store.discover(page, None, requested)
    assert store.phases() == {"backfill": 1}
    settle(tables, replace(synced(2, "3k2", "root", 0), account_time="t2", account_seq=2))
    store.discover(page, None, store.now() + 1.5)
    assert store.phases() == {"unavailable": 1}, "a page requested since then does"
    store.close()


def test_the_listing_of_a_pds_alone_does_not_reopen_a_repo(database: str) -> None:
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


def test_a_listed_state_of_a_repo_being_fetched_is_kept(database: str) -> None:
    """G1: the snapshot may be older than the list; and a repo that leaves `sync` meanwhile has seen it."""
    store = claimed(database)
    tables = IndexStore(settings_for(database), "c", None)
    store.discover([ListedRepo(DID, "3k9")])
    assert store.lost_events(0.0) == []
    settle(tables, synced(1, "3k2", "root", 0))
    assert store.lost_events(600.0) == []
    assert store.lost_events(0.0) == [DID]
    with psycopg.connect(database, autocommit=True) as db:
        row = "select phase, reason, seen_rev, listed_rev from sluice.repo"
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
