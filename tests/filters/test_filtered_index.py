"""A filter in the index's own transactions on a real database: counts still prove an attempt, whatever changes in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from control import filter_changes
from control.filter_changes import FilterWalk
from flows.index.apply import apply_events
from flows.index.store import IndexStore
from schemas import wire
from schemas.errors import OperatorError
from schemas.filter_spec import FilterSpec
from schemas.settings import Settings
from steps.gate.batch import OffsetEvent
from steps.gate.model import Rules
from tests.support.flow_process import wait_until

CID = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
TIME = "2026-01-01T00:00:00.000Z"
POST, LIKE, OTHER = "app.bsky.feed.post", "app.bsky.feed.like", "com.example.thing"
ONE, TWO = "did:plc:one", "did:plc:two"


class Bed:
    """The gate over a database, fed by hand."""

    def __init__(self, database: str) -> None:
        self.settings = Settings(database=database, retry_first_seconds=0)
        self.store = RepoQueue(self.settings)
        self.tables = IndexStore(self.settings, "cluster", None)
        self.rules = Rules(retry_first_seconds=0.0)
        self.db: psycopg.Connection[Any] = psycopg.connect(database, autocommit=True)
        self.offset = 0

    def feed(self, *events: Any) -> None:
        """One transaction."""
        queues: dict[str, list[OffsetEvent]] = {}
        for event in events:
            self.offset += 1
            queues.setdefault(event.did, []).append(OffsetEvent(self.offset, event))
        with self.tables.transaction() as transaction:
            apply_events(transaction, queues, self.rules)

    def claim(self, did: str = ONE) -> int:
        """Claim what is pending; the attempt."""
        self.db.execute("update sluice.repo set next_retry_at = now() where did = %s", (did,))
        ((attempt,),) = self.db.execute("select attempt from sluice.repo where did = %s", (did,)).fetchall()
        (claim,) = self.store.claim([wire.RepoTask(did=did, attempt=attempt, reason="test")], "worker")
        return claim.attempt

    def fetch(
        self, did: str = ONE, rev: str = "3a22222222222", *, paths: tuple[str, ...] = (POST, LIKE, OTHER)
    ) -> None:
        """A whole attempt."""
        attempt = self.claim(did)
        self.feed(*(created(did, attempt, rev, path) for path in paths), outcome(did, attempt, rev, len(paths)))

    def set(self, *collections: str, **more: Any) -> None:
        filter_changes.change(self.db, FilterSpec(collections=list(collections) or ["*"], **more))

    def walk(self) -> None:
        walk = FilterWalk(repos=2, prune_repos=2)
        wait_until(lambda: not (walk.step(self.db).changed or self.state().walking or self.state().pruning))

    def state(self) -> Any:
        return filter_changes.show(self.db)

    def repo(self, did: str = ONE) -> tuple[str, str]:
        ((phase, reason),) = self.db.execute("select phase, reason from sluice.repo where did = %s", (did,)).fetchall()
        return phase, reason

    def rows(self, did: str = ONE) -> list[str]:
        return [
            row[0] for row in self.db.execute("select collection from sluice.record where did = %s order by 1", (did,))
        ]

    def close(self) -> None:
        self.store.close()
        self.tables.close()
        self.db.close()


@pytest.fixture
def bed(database: str) -> Iterator[Bed]:
    one = Bed(database)
    one.store.discover([ListedRepo(ONE), ListedRepo(TWO)])
    yield one
    one.close()


def created(did: str, attempt: int, rev: str, collection: str, rkey: str = "self") -> wire.CreateEvent:
    return wire.CreateEvent(
        time=TIME, did=did, commit=CID, rev=rev, collection=collection, rkey=rkey, cid=CID, record=None, attempt=attempt
    )


def outcome(did: str, attempt: int, rev: str, count: int) -> wire.RepoOutcome:
    return wire.RepoOutcome(
        time=TIME, did=did, attempt=attempt, status="synced", active=True, rev=rev, commit=CID, data=rev, count=count
    )


def commit(did: str, rev: str, since: str, *ops: wire.Op) -> wire.CommitEvent:
    return wire.CommitEvent(
        seq=1,
        time=TIME,
        did=did,
        rev=rev,
        since=since,
        commit=CID,
        commit_block="",
        data=rev,
        prev_data=since,
        relay="r",
        ops=list(ops),
    )


def op(action: str, collection: str) -> wire.Op:
    return wire.Op(action=action, collection=collection, rkey="self", cid=None if action == "delete" else CID)


def test_what_is_left_out_still_counts(bed: Bed) -> None:
    """N9, G3: an attempt is complete by its rows and by what the filter left out, and not with a record less."""
    bed.set("app.bsky.*")
    bed.fetch()
    assert (bed.repo(), bed.rows()) == (("sync", "synced"), [LIKE, POST])
    attempt = bed.claim(TWO)
    bed.feed(*(created(TWO, attempt, "3a22222222222", path) for path in (POST, OTHER)))
    bed.feed(outcome(TWO, attempt, "3a22222222222", 3))
    assert bed.repo(TWO) == ("pending", "incomplete")
    bed.fetch(TWO)
    assert bed.repo(TWO) == ("sync", "synced"), "what the attempt before left out does not count again"


def test_live_operations_outside_are_not_written_and_leave_nothing_stale(bed: Bed) -> None:
    """N9: a row from before the filter that the stream changes would be wrong, so it goes."""
    bed.fetch()
    bed.set(POST)
    assert bed.rows() == [LIKE, POST, OTHER], "narrowing removes nothing by itself"
    bed.feed(
        commit(
            ONE, "3b22222222222", "3a22222222222", op("update", LIKE), op("create", OTHER + ".new"), op("delete", POST)
        )
    )
    assert (bed.rows(), bed.repo()) == ([OTHER], ("sync", "synced"))
    filter_changes.prune(bed.db)
    bed.walk()
    assert (bed.rows(), bed.state().clean) == ([], True)
    bed.feed(commit(ONE, "3c22222222222", "3b22222222222", op("create", LIKE), op("create", POST)))
    assert bed.rows() == [POST]


def test_widening_schedules_what_is_complete_without_it(bed: Bed) -> None:
    """N9: in bounded steps, and only where something may be missing."""
    bed.set(POST)
    bed.fetch()
    bed.fetch(TWO)
    bed.set(POST, "app.bsky.actor.profile")
    bed.walk()
    assert (bed.repo(), bed.repo(TWO)) == (("pending", "filter"), ("pending", "filter"))
    bed.fetch(rev="3b22222222222")
    bed.set(POST)
    bed.walk()
    assert bed.repo() == ("sync", "synced"), "narrowing fetches nothing"
    bed.set("*")
    bed.walk()
    bed.fetch(rev="3c22222222222")
    assert (bed.repo(), bed.rows()) == (("sync", "synced"), [LIKE, POST, OTHER])


@pytest.mark.parametrize("between", [1, 2])
def test_a_change_in_the_middle_of_an_attempt_is_noticed(bed: Bed, between: int) -> None:
    """N9: widened after records were left out, the attempt cannot be accepted: they would be missing for ever."""
    bed.set(POST)
    attempt = bed.claim()
    events = [created(ONE, attempt, "3a22222222222", path) for path in (LIKE, OTHER, POST)]
    bed.feed(*events[:between])
    bed.set("app.bsky.*")
    bed.walk()
    bed.feed(*events[between:])
    bed.feed(outcome(ONE, attempt, "3a22222222222", 3))
    assert bed.repo() == ("pending", "filter")
    bed.fetch()
    assert (bed.repo(), bed.rows()) == (("sync", "synced"), [LIKE, POST])


def test_a_prune_in_the_middle_of_an_attempt_is_no_failure_of_it(bed: Bed) -> None:
    """N9, G5: rows that it removes count as left out; the attempt was called incomplete (found by the model)."""
    attempt = bed.claim()
    bed.feed(*(created(ONE, attempt, "3a22222222222", path) for path in (LIKE, OTHER, POST)))
    bed.set(POST)
    filter_changes.prune(bed.db)
    bed.walk()
    assert bed.rows() == [POST]
    bed.feed(outcome(ONE, attempt, "3a22222222222", 3))
    assert (bed.repo(), bed.rows()) == (("sync", "synced"), [POST])


def test_a_prune_after_records_were_left_out_by_another_filter_is_noticed(bed: Bed) -> None:
    """N9: what the first filter left out, the second keeps."""
    bed.set(POST)
    attempt = bed.claim()
    bed.feed(*(created(ONE, attempt, "3a22222222222", path) for path in (LIKE, POST)))
    bed.set(LIKE)
    filter_changes.prune(bed.db)
    bed.walk()
    bed.feed(outcome(ONE, attempt, "3a22222222222", 2))
    assert bed.repo() == ("pending", "filter")
    bed.fetch(paths=(LIKE, POST))
    assert (bed.repo(), bed.rows()) == (("sync", "synced"), [LIKE])


def test_a_replay_under_a_wider_filter_does_not_spend_an_attempt(bed: Bed) -> None:
    """N9, G5: it brings what was left out, so the count does not hold; the attempt was called incomplete (found by the model)."""
    bed.set(POST)
    attempt = bed.claim()
    events = [created(ONE, attempt, "3a22222222222", path) for path in (LIKE, POST)]
    bed.feed(*events)
    bed.set("*")
    with bed.tables.transaction() as transaction:
        apply_events(
            transaction, {ONE: [OffsetEvent(n, event) for n, event in enumerate(events)]}, Rules(replayed=True)
        )
    assert bed.rows() == [LIKE, POST]
    bed.feed(outcome(ONE, attempt, "3a22222222222", 2))
    assert bed.repo() == ("pending", "filter")
    assert bed.db.execute("select retry_count from sluice.repo where did = %s", (ONE,)).fetchone() == (0,)


def test_a_change_waits_for_transactions_under_the_old_filter(bed: Bed) -> None:
    """N9: or a repo completed under it could pass the walk unseen."""
    bed.set(POST)
    attempt = bed.claim()
    changed = threading.Event()

    def widen() -> None:
        with psycopg.connect(bed.settings.database, autocommit=True) as db:
            filter_changes.change(db, FilterSpec())
        changed.set()

    thread = threading.Thread(target=widen)
    with bed.tables.transaction() as transaction:
        events = [created(ONE, attempt, "3a22222222222", LIKE), outcome(ONE, attempt, "3a22222222222", 1)]
        apply_events(transaction, {ONE: [OffsetEvent(1, events[0]), OffsetEvent(2, events[1])]}, bed.rules)
        thread.start()
        waiting = (
            "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        wait_until(lambda: bed.db.execute(waiting).fetchone() == (1,))
        assert not changed.is_set()
    thread.join(60)
    assert changed.is_set()
    assert bed.repo() == ("sync", "synced")
    bed.walk()
    assert bed.repo() == ("pending", "filter")


def test_a_boundary_of_dids_stops_the_others_and_takes_them_in_again(bed: Bed) -> None:
    """N9"""
    bed.fetch()
    bed.fetch(TWO)
    bed.set(boundary="dids", dids=[ONE])
    bed.walk()
    assert (bed.repo(), bed.repo(TWO)) == (("sync", "synced"), ("excluded", "outside"))
    three = "did:plc:three"
    bed.feed(
        commit(TWO, "3b22222222222", "3a22222222222", op("delete", POST)),
        commit(three, "3b22222222222", "3a22222222222", op("create", POST)),
        wire.AccountEvent(seq=9, time=TIME, did=TWO, active=True),
    )
    assert bed.store.discover([ListedRepo(three), ListedRepo(TWO, rev="3c22222222222")]).tasks == []
    assert bed.db.execute("select count(*) from sluice.repo").fetchone() == (2,)
    assert (bed.rows(TWO), bed.repo(TWO)) == ([LIKE, POST, OTHER], ("excluded", "outside"))
    filter_changes.prune(bed.db)
    bed.walk()
    assert (bed.rows(), bed.rows(TWO)) == ([LIKE, POST, OTHER], [])
    bed.set()
    bed.walk()
    assert bed.repo(TWO) == ("pending", "filter")
    bed.fetch(TWO, "3d22222222222")
    assert (bed.repo(TWO), bed.rows(TWO)) == (("sync", "synced"), [LIKE, POST, OTHER])


def test_a_repo_that_is_being_fetched_is_put_outside_when_it_is_done(bed: Bed) -> None:
    attempt = bed.claim(TWO)
    bed.set(boundary="dids", dids=[ONE])
    walk = FilterWalk(repos=1)
    for _ in range(9):
        walk.step(bed.db)
    assert (bed.repo(TWO)[0], bed.state().walking) == ("backfill", True)
    bed.feed(created(TWO, attempt, "3a22222222222", POST), outcome(TWO, attempt, "3a22222222222", 1))
    bed.walk()
    assert bed.repo(TWO) == ("excluded", "outside")


def test_a_signal_collection_decides_which_repos_are_inside(bed: Bed) -> None:
    """N9: those with its records stay, those that write one come in, a listing by it brings others."""
    bed.fetch()
    bed.fetch(TWO, paths=(POST,))
    bed.set(boundary="collection", signal=OTHER)
    bed.walk()
    assert (bed.repo(), bed.repo(TWO)) == (("sync", "synced"), ("excluded", "outside"))
    three, four = "did:plc:three", "did:plc:four"
    bed.feed(
        commit(three, "3b22222222222", "3a22222222222", op("create", POST)),
        commit(four, "3b22222222222", "3a22222222222", op("create", OTHER)),
    )
    bed.feed(commit(TWO, "3b22222222222", "3a22222222222", op("create", POST)))
    assert (bed.repo(four), bed.repo(TWO)) == (("pending", "discovered"), ("excluded", "outside"))
    bed.feed(commit(TWO, "3c22222222222", "3b22222222222", op("create", OTHER)))
    assert bed.repo(TWO)[0] == "pending"
    assert bed.store.discover([ListedRepo(three)]).tasks == []
    make = "insert into sluice.backfill_job (name, kind, relay, collection) values ('by signal', 'collection', 'https://r', %s) returning id"
    (job,) = bed.db.execute(make, (OTHER,)).fetchone() or (0,)
    assert [task.did for task in bed.store.discover([ListedRepo(three)], job).tasks] == [three]
    bed.set(boundary="collection", signal=OTHER)
    bed.walk()
    assert bed.repo(TWO)[0] == "pending", "not known to be outside while it was never fetched under it"


def test_a_signal_has_to_be_kept(bed: Bed) -> None:
    with pytest.raises(OperatorError, match="leave out the signal"):
        bed.set("app.bsky.*", boundary="collection", signal=OTHER)
