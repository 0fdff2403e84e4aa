"""Lost events are found against what the log holds, and a storm of refetches stops by itself (H7)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from connectors.kafka.offsets import Offsets
from connectors.kafka.producer import LogProducer
from connectors.postgres.repo_queue import FOREVER, ListedRepo, RepoQueue
from connectors.postgres.stream_cursors import CursorStore
from connectors.runtime import metrics
from control.tasks import storms
from control.tasks.scheduler import Scheduler
from control.tasks.settled import Settled
from control.tasks.storms import Storms, listed, release
from schemas.settings import Settings
from steps.shares import Share

RELAY = "https://relay.example"
GRACE = 600.0


@pytest.fixture
def settings(settings_of: Callable[..., Settings], database: str) -> Settings:
    return settings_of(database=database, relays=[RELAY], listed_rev_grace_seconds=GRACE)


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as one:
        yield one


def in_sync(db: psycopg.Connection[Any], count: int, **columns: str) -> None:
    """Repos in sync at rev 3a; `columns`: SQL of further ones."""
    names, values = "".join(f", {name}" for name in columns), "".join(f", {value}" for value in columns.values())
    db.execute(
        f"insert into sluice.repo (did, phase, reason, attempt, rev, data{names})"
        f" select 'did:plc:' || n, 'sync', 'synced', 1, '3a', 'd'{values} from generate_series(1, %s) n".encode(),
        (count,),
    )


def listed_ahead(db: psycopg.Connection[Any], count: int, seconds: float) -> None:
    """Repos that a listing called ahead so long ago."""
    in_sync(db, count, listed_rev="'3b'", listed_since=f"now() - interval '{seconds} seconds'")


def say(settings: Settings, at: float) -> None:
    """A live message that was written at this time, in one partition."""
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    producer.produce(settings.topic("firehose_live"), b"{}", b"did:plc:1", partition=1, timestamp=int(at * 1000))
    assert producer.flush(30) == 0


def reads_to(db: psycopg.Connection[Any], at: float) -> None:
    db.execute(
        "insert into sluice.cursor (flow, upstream, position, detail) values ('firehose', %s, '9', jsonb_build_object("
        "'epoch', 0, 'time', to_char(to_timestamp(%s) at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')))"
        " on conflict (flow, upstream, share, shares) do update set detail = excluded.detail",
        (RELAY, at),
    )


def phases(db: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(db.execute("select phase, count(*) from sluice.repo group by phase").fetchall())


@pytest.fixture
def scheduler(settings: Settings) -> Iterator[Scheduler]:
    store = RepoQueue(settings)
    one = Scheduler(settings, store, LogProducer(settings), Offsets(settings))
    yield one
    one.close()
    store.close()


def test_a_listing_is_not_compared_with_rows_that_wait_for_the_log(
    settings: Settings, db: psycopg.Connection[Any], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index lags by more than the grace; nothing was lost, and nothing is queued again."""
    monkeypatch.setattr("control.tasks.settled.FRESH_SECONDS", 0.0)
    now = time.time()
    listed_ahead(db, 267, GRACE + 60)
    reads_to(db, now)
    say(settings, now - GRACE - 300)  # unread, and older than the listing
    assert scheduler.lost_events() == []
    assert phases(db) == {"sync": 267}
    cluster = Offsets(settings).cluster
    db.execute(
        "insert into sluice.stream_offset (cluster, group_id, topic, part, next) values (%s, %s, %s, 1, 1)",
        (cluster, settings.group("index"), settings.topic("firehose_live")),
    )
    assert len(scheduler.lost_events()) == 267
    assert phases(db) == {"pending": 267}


def test_a_listing_is_not_compared_with_a_stream_that_has_not_come_so_far(
    settings: Settings, db: psycopg.Connection[Any], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The firehose catches up with hours that it was away; the events are at the relay, not lost."""
    monkeypatch.setattr("control.tasks.settled.FRESH_SECONDS", 0.0)
    now = time.time()
    listed_ahead(db, 5, GRACE + 60)
    reads_to(db, now - 3600)
    assert scheduler.lost_events() == []
    reads_to(db, now - 90)  # past the listing, but not by the grace
    assert scheduler.lost_events() == []
    reads_to(db, now)
    assert len(scheduler.lost_events()) == 5


def test_a_new_number_of_shares_has_come_only_as_far_as_the_one_before(
    settings: Settings, db: psycopg.Connection[Any], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 1 share to 3: they know no time of their own, and the only row that has one goes."""
    monkeypatch.setattr("control.tasks.settled.FRESH_SECONDS", 0.0)
    listed_ahead(db, 5, GRACE + 60)
    reads_to(db, time.time() - 3600)
    for number in range(3):
        with closing(CursorStore(settings, "firehose", Share(number, 3))) as store:
            store.starts([RELAY])
            store.retire([RELAY])
    times = db.execute("select shares, detail ->> 'time' <> '' from sluice.cursor").fetchall()
    assert times == [(3, True)] * 3
    assert scheduler.lost_events() == []
    db.execute('update sluice.cursor set detail = detail || \'{"time": ""}\'')
    assert scheduler.lost_events() == []
    reads_to(db, time.time())  # a row beside those without a time
    assert scheduler.lost_events() == []
    assert phases(db) == {"sync": 5}


def test_without_a_firehose_only_the_log_counts(settings: Settings, db: psycopg.Connection[Any]) -> None:
    """A mirror of snapshots alone."""
    settled = Settled(settings, Offsets(settings))
    assert time.time() - 60 < settled.until() < FOREVER
    settled.close()


def test_a_storm_of_lost_events_stops_before_it_begins_and_asks(
    settings: Settings, db: psycopg.Connection[Any], scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H7: no repo loses its place in the stream; an operator lets them through."""
    monkeypatch.setattr(storms, "STORM_LEAST", 10)
    reads_to(db, time.time())
    listed_ahead(db, 11, GRACE + 60)
    db.execute("analyze sluice.repo")
    assert scheduler.lost_events() == []
    assert phases(db) == {"sync": 11}
    assert [(row["reason"], row["repos"], row["released_until"]) for row in listed(settings)] == [
        ("lost_event", 11, None)
    ]
    assert metrics.STORM_REPOS.labels("lost_event")._value.get() == 11
    assert not release(settings, "desync")
    assert release(settings, "lost_event")
    assert len(scheduler.lost_events()) == 11
    assert listed(settings)[0]["released_until"] is not None


@pytest.mark.parametrize("reason", storms.REASONS)
def test_every_reason_of_a_refetch_is_held_above_its_share_of_an_hour(
    settings: Settings, db: psycopg.Connection[Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H7: what was queued in the last hour counts; other reasons go on; the hold ends with its cause."""
    monkeypatch.setattr(storms, "STORM_LEAST", 10)
    breaker, store = Storms(settings), RepoQueue(settings)
    in_sync(db, 12)
    move = "update sluice.repo set phase = 'pending', reason = %s, next_retry_at = now(), queued_at = null where did = any(%s)"
    db.execute(move, (reason, [f"did:plc:{n}" for n in range(1, 9)]))
    assert breaker.held(0, now=True) == frozenset()
    tasks = store.due(100, breaker.held())
    breaker.count(task.reason for task in tasks)
    assert len(tasks) == 8
    db.execute(move, (reason, [f"did:plc:{n}" for n in range(9, 12)]))
    db.execute(move, ("retry", ["did:plc:12"]))
    assert breaker.held(0, now=True) == {reason}  # 8 of this hour and 3 more
    assert [task.reason for task in store.due(100, breaker.held())] == ["retry"]
    assert store.due(100, breaker.held()) == []
    db.execute("update sluice.repo set phase = 'sync' where did = 'did:plc:9'")
    db.execute("update sluice.repo set next_retry_at = now()")
    assert breaker.held(0, now=True) == frozenset()
    assert listed(settings) == []
    assert len(store.due(100, breaker.held())) == 2
    breaker.close()
    store.close()


def test_the_limit_grows_with_the_mirror_and_first_fetches_are_no_storm(
    settings: Settings, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """H7: a few per cent, and some absolute number."""
    monkeypatch.setattr(storms, "STORM_LEAST", 2)
    breaker, store = Storms(settings), RepoQueue(settings)
    store.discover([ListedRepo(f"did:plc:{n}") for n in range(400)])
    db.execute("update sluice.repo set queued_at = null")
    db.execute("analyze sluice.repo")
    assert breaker.most() == 12
    assert breaker.held(0, now=True) == frozenset()
    assert len(store.due(1000, breaker.held())) == 400
    breaker.close()
    store.close()
