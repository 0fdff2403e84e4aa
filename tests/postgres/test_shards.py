"""Repos in several databases: each statement reaches the shard of its repos, and one that does not answer holds up no other."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
import pytest

from connectors.postgres import shard_identity
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from connectors.postgres.shard_identity import accept_loss, prepare_shards
from connectors.postgres.sharded_queue import ShardedQueue
from connectors.postgres.shards import Shards, ShardUnavailable
from control import filter_changes, jobs, sharded_filter
from control.tasks.job_steps import JobSteps
from control.tasks.restored import RestoreBarrier
from flows.index.apply import apply_events, rules_of
from flows.index.store import IndexStore
from schemas import wire
from schemas.errors import OperatorError
from schemas.filter_spec import FilterSpec
from schemas.job_spec import Job, JobSpec
from schemas.settings import Settings, SettingsError, load
from schemas.shard_ranges import shard_ranges
from schemas.sql import queries
from schemas.tuning import Tuning
from steps.gate.batch import OffsetEvent
from tests.support.postgres import fresh_database
from tests.support.shard_databases import BY_SHARD, DIDS, ask, half, urls_of


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0-2=http://x", "FIRST-LAST=URL"),
        ("postgresql://x", "FIRST-LAST=URL"),
        ("1-2=postgresql://x", "does not begin at 0"),
        ("0-2=postgresql://x 4-7=postgresql://y", "does not begin at 3"),
        ("0-2=postgresql://x 2-7=postgresql://y", "does not begin at 3"),
        ("0-2=postgresql://x 3-7=postgresql://x", "same database"),
    ],
)
def test_ranges_cover_each_partition_once(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        shard_ranges(text)


def test_settings_that_do_not_fit_shards_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_SHARDS", "0-3=postgresql://a 4=postgresql://b 5-7=postgresql://c")
    assert [one.name for one in shard_ranges(load(kafka_partitions=8).shards)] == ["0-3", "4-4", "5-7"]
    for wrong, problem in (
        ({"kafka_partitions": 16}, "ends at partition 7"),
        ({"kafka_partitions": 8, "appview": True}, "SLUICE_APPVIEW needs all repos in one database"),
        ({"kafka_partitions": 8, "database": "postgresql://b"}, "names the database of SLUICE_DATABASE"),
    ):
        with pytest.raises(SettingsError, match=problem) as refused:
            load(**wrong)
        assert "\n" not in str(refused.value)


def test_each_repo_is_in_the_shard_of_its_partition(sharded: Settings, queue: RepoQueue) -> None:
    """S10: discovered, queued, claimed, reaped and retried as in one database."""
    assert isinstance(queue, ShardedQueue)
    found = queue.discover([ListedRepo(did) for did in DIDS])
    assert (found.new, found.known) == (60, 0)
    for url, dids in zip(urls_of(sharded), BY_SHARD, strict=True):
        assert sorted(row[0] for row in ask(url, "select did from sluice.repo")) == dids
    assert ask(sharded.database, "select count(*) from sluice.repo") == [(0,)]
    claims = queue.claim(found.tasks, "w")
    assert sorted(claim.did for claim in claims) == DIDS
    assert queue.renew("w", [(did, 1) for did in DIDS]) == {(did, 1) for did in DIDS}
    assert queue.retry(DIDS[0], 1, "x", 0.0, last=True) == "failed"
    assert queue.release_all("w") == 59
    assert sorted(task.did for task in queue.due(100)) == DIDS[1:]
    assert queue.phases() == {"pending": 59, "failed": 1}
    assert queue.retry_failed(None) == [DIDS[0]]


def test_a_shard_that_does_not_answer_holds_up_no_other(sharded: Settings, queue: RepoQueue) -> None:
    """S10."""
    tasks = queue.discover([ListedRepo(did) for did in DIDS]).tasks
    assert len(queue.claim(tasks, "w")) == 60
    down = half(sharded)
    other = ShardedQueue(down)
    assert other.renew("w", [(did, 1) for did in DIDS]) == {(did, 1) for did in DIDS}, (
        "nobody else can have claimed those either"
    )
    other.produced([(did, 1, 0, 0) for did in DIDS])
    assert other.stale(BY_SHARD[1][0], 1) is None
    assert other.retry(BY_SHARD[1][0], 1, "x", 0.0) is None
    assert other.claim(tasks, "w") == []
    assert other.reap("cluster", 0.0) == {}
    with pytest.raises(ShardUnavailable):
        other.discover([ListedRepo(did) for did in DIDS])  # a listing repeats its page
    other.close()
    produced = "select did from sluice.repo where produced_offset is not null"
    assert len(ask(urls_of(sharded)[0], produced)) == len(BY_SHARD[0])


def test_a_shard_rests_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(shards="0=postgresql://a 1=postgresql://b", kafka_partitions=2)
    monkeypatch.setattr(shard_identity, "check", lambda *_: None)
    monkeypatch.setattr("connectors.postgres.shards.REST_FIRST_SECONDS", 60.0)
    calls: list[str] = []

    def work(url: str) -> str:
        calls.append(url)
        if url.endswith("b"):
            raise psycopg.OperationalError("gone")
        return url

    shards = Shards(settings, lambda one: one.database)
    assert shards.each(work) == ["postgresql://a"]
    tries = calls.count("postgresql://b")
    assert shards.each(work) == ["postgresql://a"]
    assert calls.count("postgresql://b") == tries, "it rests"
    assert shards.resting(1)
    with pytest.raises(ShardUnavailable):
        shards.every(work)
    monkeypatch.setattr(shards, "_rest_until", [0.0, 0.0])
    assert shards.each(str) == ["postgresql://a", "postgresql://b"]
    one = Shards(Settings(database="postgresql://b"), lambda one: one.database)
    with pytest.raises(psycopg.OperationalError, match="gone"):
        one.each(work)


def test_the_database_of_another_shard_or_mirror_is_refused(
    sharded: Settings, database: str, postgres: str, migrated_template: str
) -> None:
    """S10."""
    first, second = urls_of(sharded)
    for shards, problem in (
        (f"0-2={second} 3-7={first}", "0-2 is shard 3-7"),
        (f"0-3={first} 4-7={second}", "the shards of this mirror are 0-2 3-7"),
        ("", "SLUICE_SHARDS has none"),
    ):
        with pytest.raises(OperatorError, match=problem):
            prepare_shards(sharded.replaced(shards=shards))
    with pytest.raises(OperatorError, match="SLUICE_DATABASE is shard 0-2"):
        prepare_shards(Settings(database=first))
    with (
        fresh_database(postgres, migrated_template) as other,
        pytest.raises(OperatorError, match="belongs to another mirror"),
    ):
        prepare_shards(sharded.replaced(database=other))
    ask(first, "delete from sluice.shard")
    ask(first, "insert into sluice.repo (did) values ('did:plc:a')")
    with pytest.raises(OperatorError, match="holds repos of no shard"):
        prepare_shards(sharded)
    ask(database, "delete from sluice.shard")
    ask(database, "insert into sluice.repo (did) values ('did:plc:a')")
    with pytest.raises(OperatorError, match="SLUICE_DATABASE holds repos"):
        prepare_shards(sharded)


def test_a_shard_that_was_down_at_the_start_is_checked_before_its_first_use(sharded: Settings) -> None:
    shard_identity._checked.clear()
    prepare_shards(half(sharded))  # only logged
    ask(urls_of(sharded)[1], "update sluice.shard set own = '0-1'")
    shards = Shards(sharded, lambda one: one.database)
    assert shards.call(0, str) == urls_of(sharded)[0]
    with pytest.raises(OperatorError, match="shard 0-1"):
        shards.call(1, str)
    ask(urls_of(sharded)[1], "delete from sluice.migration where name like '0004%'")
    with pytest.raises(OperatorError, match="lacks 0004"):
        shards.call(1, str)


def test_a_job_counts_its_repos_in_all_shards(sharded: Settings, queue: RepoQueue) -> None:
    class Producer:
        def send(self, messages: list[Any]) -> None:
            sent.extend(messages)

    sent: list[Any] = []
    steps = JobSteps(sharded, queue, Producer())  # type: ignore[arg-type]
    with psycopg.connect(sharded.database, autocommit=True) as db:
        job = jobs.start(db, JobSpec(source="dids", dids=DIDS), sharded)
        assert isinstance(job, Job)
        assert steps.queue() == 60
        steps.count()
        assert (jobs.get(db, job.id).status, jobs.get(db, job.id).counts.pending) == ("running", 60)
        for number, url in enumerate(urls_of(sharded)):
            ask(url, "update sluice.repo set phase = 'sync', rev = 'a', first_attempt = 1")
            db.execute("update sluice.backfill_job set counted_at = null")
            steps.count()
            assert jobs.get(db, job.id).status == ("running", "completed")[number]
        assert jobs.get(db, job.id).counts.synced == 60
        assert jobs.known_of(sharded, DIDS) == (60, 60)
    steps.close()


def test_a_listing_by_the_signal_collection_admits_repos_on_every_shard(sharded: Settings, queue: RepoQueue) -> None:
    """The job is in the main database; each shard has its copy of the filter."""
    with psycopg.connect(sharded.database, autocommit=True) as db:
        spec = FilterSpec(boundary="collection", signal="a.b.c")
        state = sharded_filter.change(sharded, db, spec)
        insert = "insert into sluice.backfill_job (name, kind, relay, collection) values ('x', 'collection', 'r', 'a.b.c') returning id"
        ((job,),) = db.execute(insert).fetchall()
    for url in urls_of(sharded):
        assert ask(url, "select version, signal from sluice.filter") == [(state.version, "a.b.c")]
    assert queue.discover([ListedRepo(did) for did in DIDS]).new == 0
    assert queue.discover([ListedRepo(did) for did in DIDS], job).new == 60


def test_a_shard_that_was_down_gets_the_filter_later(sharded: Settings) -> None:
    down = half(sharded)
    with psycopg.connect(sharded.database, autocommit=True) as db:
        with pytest.raises(OperatorError, match="shard 3-7 does not answer"):
            sharded_filter.change(down, db, FilterSpec(boundary="dids", dids=DIDS[:2]))
        assert sharded_filter.show(sharded, db).walking
        walks = sharded_filter.ShardWalks(sharded, 30.0)
        walks.steps(db)
        assert not sharded_filter.show(sharded, db).walking
        for url in urls_of(sharded):
            assert ask(url, "select boundary from sluice.filter") == [("dids",)]
            assert len(ask(url, "select did from sluice.filter_did")) == 2
        assert db.execute("select count(*) from sluice.stream_gap").fetchone() == (0,)
        db.execute("update sluice.filter set version = version + 1, set_at = now() - interval '2 minutes'")
        walks.steps(db)
        assert db.execute("select reason from sluice.stream_gap").fetchall() == [("the shard got the filter late",)] * 2
        assert filter_changes.show(db).version == ask(urls_of(sharded)[0], "select version from sluice.filter")[0][0]


def test_an_empty_database_in_place_of_a_shard_is_refused_until_the_loss_is_accepted(sharded: Settings) -> None:
    second = urls_of(sharded)[1]
    ask(second, "delete from sluice.shard")
    with pytest.raises(OperatorError, match=r"3-7 is empty, but was in use; .*accept-loss 3-7"):
        prepare_shards(sharded)
    with pytest.raises(OperatorError, match="no shard 3-6"):
        accept_loss(sharded, "3-6")
    accept_loss(sharded, "3-7")
    prepare_shards(sharded)
    assert ask(sharded.database, "select upstream, reason from sluice.stream_gap") == [
        ("shard:3-7", "the shard was lost")
    ]
    assert ask(second, "select own from sluice.shard") == [("3-7",)]


@pytest.mark.parametrize(
    "error", [psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, psycopg.InternalError]
)
def test_a_shard_that_did_not_answer_is_checked_again(sharded: Settings, error: type[psycopg.Error]) -> None:
    shards = Shards(sharded, lambda one: one.database)
    shards._failures = [0, 0]

    def refuse(_: str) -> None:
        raise error("x")

    with pytest.raises(ShardUnavailable):
        shards.call(1, refuse)
    ask(urls_of(sharded)[1], "delete from sluice.shard")
    shards._rest_until = [0.0, 0.0]
    with pytest.raises(OperatorError, match="no name yet"):
        shards.call(1, str)


def test_a_restore_while_control_runs_holds_back_work(database: str) -> None:
    class NoLog:
        cluster = "c"

        def lags(self, _db: object) -> list[Any]:
            return []

        def parts(self, _topics: object) -> list[Any]:
            return []

    lifted: list[int] = []
    barrier = RestoreBarrier(Settings(database=database), NoLog(), lambda: lifted.append(1))  # type: ignore[arg-type]
    barrier._letters = lambda db: None  # type: ignore[method-assign]
    with psycopg.connect(database, autocommit=True) as db:
        assert not barrier.pending(db)
        assert not lifted
        db.execute(queries("restore")["mark"])
        assert not barrier.pending(db)
        assert lifted == [1]
        assert db.execute(queries("restore")["restoring"]).fetchone() is None


def test_after_a_restore_of_the_main_database_shards_get_its_filter_and_jobs_new_numbers(sharded: Settings) -> None:
    with psycopg.connect(sharded.database, autocommit=True) as db:
        sharded_filter.change(sharded, db, FilterSpec(collections=["a.b.c"]))
        db.execute("update sluice.filter set collections = '{x.y.z}'")  # the same version as in the backup
        assert sharded_filter.show(sharded, db).walking
        ask(urls_of(sharded)[0], f"insert into sluice.repo (did, job) values ('{BY_SHARD[0][0]}', 41)")
        sharded_filter.restored(sharded, db, sharded.database)
        assert db.execute("select reason from sluice.stream_gap").fetchall() == [
            ("a database was restored from a backup",)
        ]
        sharded_filter.ShardWalks(sharded, 30.0).steps(db)
        for url in urls_of(sharded):
            assert ask(url, "select version, collections from sluice.filter") == [(3, ["x.y.z"])]
        job = jobs.start(db, JobSpec(source="dids", dids=DIDS), sharded)
        assert isinstance(job, Job)
        assert job.id > 41


def test_an_attempt_that_a_replayed_log_opened_expires(database: str) -> None:
    """Without an outcome it would stay in `backfill` for ever."""
    did = DIDS[0]
    settings = Settings(database=database, tuning=Tuning(replayed_lease_seconds=300))
    ask(database, f"insert into sluice.repo (did, phase) values ('{did}', 'pending')")
    outcome = {
        "did": did,
        "collection": "a.b.c",
        "rkey": "x",
        "rev": "3l3qo2vutsw2b",
        "time": "2026-01-01T00:00:00.000Z",
    }
    cid = "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
    event = wire.CreateEvent(**outcome, attempt=1, commit=cid, cid=cid, record=msgspec.Raw(b"{}"))  # type: ignore[arg-type]
    store, queue = IndexStore(settings, "c", None), RepoQueue(settings)
    with store.transaction() as transaction:
        apply_events(transaction, {did: [OffsetEvent(0, event, 10, 1)]}, rules_of(settings))
    assert queue.reap("c", 0.0) == {}
    ask(database, "update sluice.repo set lease_until = lease_until - interval '290 seconds'")
    assert queue.reap("c", 0.0) == {}
    ask(database, "update sluice.repo set lease_until = lease_until - interval '10 seconds'")
    assert queue.reap("c", 0.0) == {did: "pending"}
    queue.close()
    store.close()
