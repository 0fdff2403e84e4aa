"""One of several databases is slow, restored or gone, or the main one is: what that may cost, and what not."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from connectors.kafka.offsets import Offsets
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres import shards as shards_module
from connectors.postgres.connection import tuple_database
from connectors.postgres.main_database import MainUnavailable
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from connectors.postgres.shard_identity import prepare_shards
from connectors.postgres.sharded_queue import repo_queue
from connectors.postgres.shards import ShardUnavailable, with_main
from connectors.runtime.health import Health
from connectors.runtime.retry_database import retry_database
from control import filter_changes, sharded_filter
from control.control_process import _Control
from control.status import Collector
from control.tasks.obsolete_rows import ObsoleteRows
from control.tasks.shared_offsets import SharedOffsets
from flows.index.apply import rules_of
from flows.index.decode import Batch, decode
from flows.index.sink import IndexWriter, ShardedWriter
from flows.index.store import index_stores
from ops.backup import backup, restore
from schemas import wire
from schemas.filter_spec import FilterSpec
from schemas.settings import Settings
from schemas.topics import FIREHOSE_LIVE
from steps.partitioner import partition_of
from tests.support.flow_process import wait_until
from tests.support.postgres import fresh_database
from tests.support.shard_databases import BY_SHARD, DIDS, ask, checked, half, nowhere, urls_of
from tests.support.tcp_proxy import Proxy

TIME = "2026-01-01T00:00:00.000Z"


class Message:
    """A message of the log."""

    def __init__(self, value: bytes, key: str, offset: int) -> None:
        self._value, self._key, self._offset = value, key, offset

    def topic(self) -> str:
        return FIREHOSE_LIVE

    def partition(self) -> int:
        return partition_of(self._key, 8)

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._value

    def key(self) -> bytes:
        return self._key.encode()

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_767_225_600_000


class Letters:
    """Where dead letters go."""

    def __init__(self) -> None:
        self.sent: list[Out] = []

    def send(self, messages: Sequence[Out]) -> None:
        self.sent += messages


def renamed(did: str, handle: str, seq: int) -> bytes:
    """An #identity event: in the main database, it has the handle checked."""
    return wire.encode(wire.IdentityEvent(did=did, time=TIME, seq=seq, relay="r", handle=handle))


def written(settings: Settings, letters: Letters, down: set[int], messages: Sequence[Message]) -> None:
    """One batch of the index for each shard, from offset 0."""
    stores = index_stores(settings, "c", None)
    writers = [IndexWriter(settings, store, rules_of(settings), letters, patience=1.0) for store in stores.all()]
    sink = ShardedWriter(stores, writers, down)
    batches: dict[int, list[Any]] = {}
    for message in messages:
        batches.setdefault(stores.of_partition(message.partition()), []).append(message)
    decoded = []
    for some in batches.values():
        spans = {(FIREHOSE_LIVE, one.partition()): (0, 1) for one in some}
        decoded.append(decode(Batch(some, spans), ""))
    sink.write_batch(decoded)
    for store in stores.all():
        store.close()


def begin_offsets(settings: Settings) -> None:
    for url in urls_of(settings):
        for part in range(8):
            ask(
                url,
                "insert into sluice.stream_offset (cluster, group_id, topic, part, next)"
                f" values ('c', '{settings.group('index')}', '{FIREHOSE_LIVE}', {part}, 0)",
            )


def test_a_main_database_that_does_not_answer_is_not_the_shards_fault(sharded: Settings, queue: RepoQueue) -> None:
    """S10."""
    queue.discover([ListedRepo(did) for did in DIDS])
    other = repo_queue(checked(sharded.replaced(database=nowhere())))
    with pytest.raises(MainUnavailable):
        other.discover([ListedRepo(did, host="https://pds.example") for did in DIDS])
    assert other._shards.silent() == []  # type: ignore[attr-defined]
    assert other.phases() == {"pending": 60}, "what needs no main database goes on"
    other.close()


def test_the_index_waits_for_the_main_database_and_repeats_only_what_it_lacked(sharded: Settings) -> None:
    """S10: the event of a repo whose handle changed needs the main database; the other shard's batch is written at once."""
    begin_offsets(sharded)
    first, second = BY_SHARD[0][0], BY_SHARD[1][0]
    for url, did in zip(urls_of(sharded), (first, second), strict=True):
        ask(url, f"insert into sluice.repo (did, phase) values ('{did}', 'sync')")
    where = conninfo_to_dict(sharded.database)
    proxy = Proxy((str(where["host"]), int(str(where["port"]))))
    proxy.start()
    behind = sharded.database.replace(f":{where['port']}/", f":{proxy.port}/")
    settings = checked(sharded.replaced(database=behind))
    proxy.refuse()
    down: set[int] = set()
    account = wire.AccountEvent(did=second, time=TIME, seq=1, relay="r", active=True, status=None)
    began = time.monotonic()
    threading.Timer(3.0, proxy.restore).start()
    written(settings, Letters(), down, [
        Message(renamed(first, "new.example", 1), first, 0), Message(wire.encode(account), second, 0),
    ])  # fmt: skip
    proxy.close()
    assert time.monotonic() - began > 2.0, "it has waited"
    assert proxy.counts.refused > 0
    assert down == set()
    assert ask(sharded.database, "select did from sluice.handle") == [(first,)]
    for url in urls_of(sharded):
        assert ask(url, "select sum(next) from sluice.stream_offset") == [(1,)]


def test_a_shard_whose_statements_hang_delays_no_other(
    sharded: Settings, queue: RepoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: it counts as unavailable until its work has ended; then it goes on."""
    monkeypatch.setattr(shards_module, "SLOW_SECONDS", 3.0)
    tasks = queue.discover([ListedRepo(did) for did in DIDS]).tasks
    with psycopg.connect(urls_of(sharded)[1]) as db:
        db.execute("lock table sluice.repo")
        began = time.monotonic()
        assert sorted(claim.did for claim in queue.claim(tasks, "w")) == BY_SHARD[0]
        assert time.monotonic() - began < 15.0, "not until the lock is given up"
        began = time.monotonic()
        mine = [(did, 1) for did in BY_SHARD[0]]
        for _ in range(20):
            assert queue.renew("w", mine) == set(mine)
        assert time.monotonic() - began < 15.0, "only the first call waits for it"
        with pytest.raises(ShardUnavailable):
            queue.discover([ListedRepo(did) for did in BY_SHARD[1]])
    deadline = time.monotonic() + 30
    while queue._shards.silent() and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.05)
    assert queue.renew("w", [(did, 1) for did in DIDS]) == {(did, 1) for did in DIDS}, "its claims were made late"


def test_an_error_of_work_that_ended_late_is_raised_by_the_next(
    sharded: Settings, queue: RepoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "SLOW_SECONDS", 0.2)
    shards = shards_module.Shards(sharded, lambda one: one.database)

    release = threading.Event()

    def fail(_: str) -> None:
        release.wait(60)
        raise AssertionError("a bug")

    assert shards.gather({1: fail}) == {}
    assert shards.silent() == ["3-7"]
    release.set()
    wait_until(lambda: not shards.silent())
    with pytest.raises(AssertionError, match="a bug"):
        shards.call(1, str)
    assert shards.call(1, str) == urls_of(sharded)[1]


def test_a_dead_letter_of_a_batch_is_written_once_however_often_its_shard_fails(sharded: Settings) -> None:
    """N4, S10."""
    begin_offsets(sharded)
    did = BY_SHARD[1][0]
    letters, down = Letters(), set[int]()
    for _ in range(2):
        written(half(sharded), letters, down, [Message(b"no JSON", did, 0)])
    assert down == {1}
    assert letters.sent == [], "not before its database answers"
    down.clear()
    written(sharded, letters, down, [Message(b"no JSON", did, 0)])
    assert len(letters.sent) == 1
    assert down == set()


def test_a_restored_shard_waits_for_the_index_while_the_others_are_scheduled(
    settings_of: Any, database: str, postgres: str, migrated_template: str, tmp_path: Path
) -> None:
    """S10: one shard is backed up, lost and restored by itself."""
    with fresh_database(postgres, migrated_template) as a, fresh_database(postgres, migrated_template) as b:
        settings: Settings = settings_of(database=database, shards=f"0={a} 1={b}")
        prepare_shards(settings)
        queue = repo_queue(settings)
        queue.discover([ListedRepo(did) for did in DIDS])
        lost = {did for did in DIDS if partition_of(did, 2) == 1}
        backup(settings.replaced(database=b, shards=""), tmp_path / "shard")
        queue.close()
        with fresh_database(postgres) as new:
            restore(settings.replaced(database=new, shards=""), tmp_path / "shard")
            after = settings.replaced(shards=f"0={a} 1={new}")
            prepare_shards(after)  # it is the same shard
            unread = [Out(FIREHOSE_LIVE, next(iter(lost)), b"{}")]
            LogProducer(after).send(unread)
            restored, close = _Control(after, Health("control"))._restored_step()
            restored()
            queue = repo_queue(after)
            ask(new, "update sluice.repo set queued_at = null")
            ask(a, "update sluice.repo set queued_at = null")
            assert {task.did for task in queue.due(100)} == set(DIDS) - lost
            assert ask(database, "select count(*) from sluice.stream_gap") == [(0,)]
            offsets = Offsets(after)
            ask(
                new,
                "insert into sluice.stream_offset (cluster, group_id, topic, part, next) values"
                f" ('{offsets.cluster}', '{after.group('index')}', '{after.topic(FIREHOSE_LIVE)}', 1, 1)",
            )
            restored()
            assert {task.did for task in queue.due(100)} == lost
            assert ask(database, "select upstream, reason from sluice.stream_gap") == [
                ("shards", "a database was restored from a backup")
            ], "the next listing finds what the log lacked"
            queue.close()
            close()


def test_the_status_is_shown_while_no_shard_answers(settings_of: Any, database: str) -> None:
    settings: Settings = checked(settings_of(database=database, shards=f"0={nowhere()} 1={nowhere()}"))
    collector = Collector(settings)
    found = collector.collect()
    assert found.shards_down == ["0-0", "1-1"]
    assert set(found.repos.values()) == {0}
    assert len(found.partition_lags) > 0
    collector.close()


def test_ended_audits_of_each_shard_are_removed(settings_of: Any, sharded: Settings) -> None:
    """G6."""
    settings: Settings = settings_of(database=sharded.database).replaced(shards=sharded.shards, kafka_partitions=8)
    for url in urls_of(settings):
        ask(
            url,
            "insert into sluice.audit_run (options, updated_at, finished_at)"
            " select '{}', now() - interval '31 days', now() - interval '31 days' from generate_series(1, 3)",
        )
    main, shards = with_main(settings, lambda one: tuple_database(one, "test"))
    assert ObsoleteRows(SharedOffsets(settings)).step(main(), shards).history == 4
    for url in urls_of(settings):
        assert ask(url, "select count(*) from sluice.audit_run") == [(1,)], "the newest stays"
    for database in (main, *shards.all()):
        database.close()


def test_lists_of_equal_length_under_one_version_are_told_apart(sharded: Settings) -> None:
    """After a restore of the main database, versions repeat."""
    with psycopg.connect(sharded.database, autocommit=True) as db:
        sharded_filter.change(sharded, db, FilterSpec(boundary="dids", dids=DIDS[:2]))
        db.execute("update sluice.filter set version = version - 1")  # the backup
        filter_changes.change(db, FilterSpec(boundary="dids", dids=DIDS[2:4]))
        assert sharded_filter.show(sharded, db).walking
        walks = sharded_filter.ShardWalks(sharded, 30.0)
        walks.steps(db)
        for url in urls_of(sharded):
            assert sorted(ask(url, "select did from sluice.filter_did")) == [(did,) for did in DIDS[2:4]]
        walks.steps(db)
        assert not sharded_filter.show(sharded, db).walking


def test_a_listing_waits_without_end_for_a_shard_and_five_minutes_for_its_own_database() -> None:
    """A restart would not help: the other processes do without it."""
    tries = 0

    def work() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ShardUnavailable("shard 3-7 did not answer a moment ago")
        return tries

    health = Health("list_repos")
    assert retry_database(work, health, seconds=-1.0) == 3
    assert health.why.startswith("SLUICE_SHARDS: shard 3-7")

    def gone() -> None:
        raise psycopg.OperationalError("gone")

    with pytest.raises(psycopg.OperationalError, match="gone"):
        retry_database(gone, seconds=-1.0)
