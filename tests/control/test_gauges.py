"""Gauges of the whole mirror: what tables and log hold is what /metrics says, with labels that stay few."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Producer
from prometheus_client import REGISTRY

from connectors.kafka.offsets import Offsets
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from connectors.runtime import metrics
from connectors.runtime.health import watch_disk
from control.control_process import export_lag
from control.tasks.gauges import TOP_HOSTS, Gauges, hosts_with_work
from schemas.settings import Settings

RELAY = "https://relay.test"
LACKING = "https://lacking.test"
HOUR = 3600


@pytest.fixture
def settings(settings_of: Callable[..., Settings], database: str) -> Settings:
    return settings_of(database=database, relays=[RELAY, LACKING])


@pytest.fixture
def db(settings: Settings) -> psycopg.Connection:
    with psycopg.connect(settings.database, autocommit=True) as connection:
        yield connection


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def repos(settings: Settings, db: psycopg.Connection, count: int) -> list[str]:
    dids = [f"did:plc:{number:024}" for number in range(count)]
    RepoQueue(settings).discover([ListedRepo(did) for did in dids])
    return dids


def job(db: psycopg.Connection, name: str, status: str, retries: int) -> None:
    """A job that came to this status as jobs do."""
    db.execute("insert into sluice.backfill_job (name, kind, relay) values (%s, 'relay', 'https://r')", (name,))
    if status == "pending":
        return
    db.execute("update sluice.backfill_job set status = 'running' where name = %s", (name,))
    resumes = "case when %s = 'retry' then now() + interval '1 h' end"
    moves = f"update sluice.backfill_job set status = %s, retry_count = %s, next_retry_at = {resumes} where name = %s"
    db.execute(moves, (status, retries, status, name))


def test_tables_are_counted(settings: Settings, db: psycopg.Connection) -> None:
    """T5: claims that are stuck for an hour, repos with four attempts of five behind them; and phases, letters, skipped
    ranges, gaps, cursors, pauses, and the newest audit's findings.
    """
    dids = repos(settings, db, 6)
    for did, phase in zip(dids, ("pending", "backfill", "backfill", "sync", "unavailable", "failed"), strict=True):
        db.execute("update sluice.repo set phase = %s where did = %s", (phase, did))
    last = "update sluice.repo set retry_count = 4, queued_at = null, next_retry_at = now() + interval '1 h' where did = %s"
    db.execute(last, (dids[0],))
    db.execute(
        "update sluice.repo set retry_count = 3, phase_since = now() - interval '2 h' where did = %s", (dids[1],)
    )
    db.execute(
        "update sluice.repo set produced_offset = 1, phase_since = now() - interval '2 h' where did = %s", (dids[2],)
    )
    db.execute(
        "insert into sluice.dead_letter (part, log_offset, topic, reason, error, state)"
        " values (0, 0, 't', 'bad_car', 'e', 'open'), (0, 1, 't', 'bad_car', 'e', 'dismissed')"
    )
    db.execute(
        "insert into sluice.skipped_range (upstream, from_cursor, to_cursor, reason, skipped_at)"
        " values (%s, '1', '2', 'x', now() - interval '2 h')",
        (RELAY,),
    )
    db.execute("insert into sluice.stream_gap (upstream, reason) values (%s, 'gap')", (RELAY,))
    db.execute(
        "insert into sluice.cursor (flow, upstream, share, shares, position, updated_at) values"
        " ('firehose', %(relay)s, 0, 2, '1', now() - interval '1 h'), ('firehose', %(relay)s, 1, 2, '1', now()),"
        " ('firehose', %(relay)s, 0, 1, '1', now() - interval '9 h'),"  # a former number of shares
        " ('firehose', %(lacking)s, 0, 3, '1', now()), ('firehose', %(lacking)s, 1, 3, '1', now()),"  # the third never ran
        " ('firehose', %(lacking)s, 0, 1, '1', now() - interval '9 h'),"
        " ('list_repos', 'https://one-of-many.test', 0, 1, '1', now())",
        {"relay": RELAY, "lacking": LACKING},
    )
    db.execute(
        "insert into sluice.host (host, consecutive_failures, paused_until) values"
        " ('https://a.test', 2, null), ('https://b.test', 0, now() + interval '1 h')"
    )
    for name, status, retries in (
        ("new", "pending", 0),
        ("three", "retry", 3),
        ("four", "retry", 4),
        ("over", "completed", 4),
        ("given up", "failed", 5),
    ):
        job(db, name, status, retries)
    for found in (5, 2):
        row = db.execute("insert into sluice.audit_run (options) values ('{}') returning id").fetchone()
        for number in range(found):
            what = (row[0], dids[number])
            db.execute("insert into sluice.audit_finding (run, did, kind, detail) values (%s, %s, 'rows', '')", what)
    db.execute(
        "insert into sluice.handle (did, next_check_at, checked_at) values ('did:plc:a', '-infinity', null),"
        " ('did:plc:b', now() - interval '1 h', null), ('did:plc:c', now() - interval '2 h', now()),"
        " ('did:plc:d', now() + interval '1 h', now())"
    )
    looks = ("repos", "jobs", "ages", "sizes", "handles")
    failed = {look: value("sluice_gauge_queries_failed_total", query=look) for look in looks}
    Gauges(settings).refresh(heavy=True)
    assert {look: value("sluice_gauge_queries_failed_total", query=look) for look in failed} == failed
    assert [value("sluice_repos", phase=phase) for phase in ("pending", "backfill", "sync", "failed")] == [1, 2, 1, 1]
    assert value("sluice_repos_near_last_attempt") == 1
    assert value("sluice_repos_stuck") == 1, "one that has produced waits for the index, which has an alert of its own"
    assert value("sluice_dead_letters_open") == 1
    assert value("sluice_skipped_ranges_open") == 1
    assert value("sluice_skipped_range_age_seconds") == pytest.approx(2 * HOUR, abs=60)
    assert value("sluice_stream_gaps_open") == 1
    assert value("sluice_cursor_age_seconds", flow="firehose", upstream=RELAY) == pytest.approx(HOUR, abs=60)
    assert value("sluice_cursor_age_seconds", flow="firehose", upstream=LACKING) == pytest.approx(9 * HOUR, abs=60)
    assert value("sluice_cursor_age_seconds", flow="list_repos", upstream="https://one-of-many.test") is None
    assert [value("sluice_hosts", state=state) for state in ("known", "failing", "paused")] == [2, 1, 1]
    assert value("sluice_quota_pause_seconds", what="host") == pytest.approx(HOUR, abs=60)
    assert [value("sluice_jobs", status=status) for status in ("pending", "retry", "failed", "running")] == [1, 2, 1, 0]
    assert value("sluice_jobs_near_last_attempt") == 1, "neither with fewer failures, nor when it is over"
    assert value("sluice_audit_findings") == 2, "of the newest audit"
    assert value("sluice_database_bytes") > 1_000_000
    assert [value("sluice_handles", state=state) for state in ("verified", "unverified", "due")] == [0, 4, 3]
    assert value("sluice_handles_late_seconds") == pytest.approx(2 * HOUR, abs=60)


def test_only_the_hosts_with_most_work_are_labels(settings: Settings, db: psycopg.Connection) -> None:
    """However many PDSes there are, ten are shown at a time, and one that is done goes."""
    dids = repos(settings, db, 60)
    for number, did in enumerate(dids):  # host 0 has one repo, host 1 has two, …
        host = next(h for h in range(60) if (h + 1) * (h + 2) // 2 > number)
        db.execute("update sluice.repo set host = %s where did = %s", (f"https://h{host}.test", did))
    db.execute("insert into sluice.host (host) select 'https://x' || n from generate_series(1, 300) n")
    assert len({row["host"] for row in hosts_with_work(db, 3)}) == 3
    gauges = Gauges(settings)
    gauges.refresh(heavy=True)
    assert value("sluice_host_repos", host="https://h9.test", phase="pending") == 10
    shown = {sample.labels["host"] for metric in metrics.HOST_REPOS.collect() for sample in metric.samples}
    assert len(shown) == TOP_HOSTS
    db.execute("update sluice.repo set host = null where host = 'https://h8.test'")
    db.execute(
        "insert into sluice.identity (did, pds) select did, 'https://resolved.test' from sluice.repo where host is null"
    )
    gauges.refresh(heavy=True)
    assert value("sluice_host_repos", host="https://resolved.test", phase="pending") == 9, "a relay names no PDS"
    db.execute("update sluice.repo set phase = 'sync' where host = 'https://h9.test'")
    gauges.refresh(heavy=True)
    assert value("sluice_host_repos", host="https://h9.test", phase="pending") is None


def test_the_age_of_the_oldest_message_is_exported_with_the_retention(settings: Settings) -> None:
    """The oldest unsettled message by its own time, per group and topic, whatever stands behind it in other partitions."""
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    for part, age in ((0, 60), (0, 5 * HOUR), (1, 2 * HOUR), (1, HOUR)):
        stamp = int((time.time() - age) * 1000)
        producer.produce(settings.topic("firehose_live"), b"{}", "k", partition=part, timestamp=stamp)
    assert producer.flush(60) == 0
    Gauges(settings).refresh(heavy=True)
    assert value("sluice_oldest_unsettled_seconds", group="index", topic="firehose_live") == pytest.approx(
        2 * HOUR, abs=60
    )
    assert value("sluice_oldest_unsettled_seconds", group="index", topic="label_live") == 0
    assert value("sluice_retention_seconds", topic="firehose_live") == 7 * 24 * HOUR
    with psycopg.connect(settings.database, autocommit=True) as db:
        export_lag(Offsets(settings).lags(db))
    assert value("sluice_topic_lag", topic="firehose_live") == 4
    assert value("sluice_lost_messages", group="index", topic="firehose_live") == 0


def test_a_failed_query_is_counted_and_the_others_continue(settings: Settings, db: psycopg.Connection) -> None:
    repos(settings, db, 3)
    db.execute("alter table sluice.skipped_range rename to gone")
    before = value("sluice_gauge_queries_failed_total", query="left_over") or 0.0
    Gauges(settings).refresh(heavy=False)
    assert value("sluice_gauge_queries_failed_total", query="left_over") == before + 1
    assert value("sluice_repos", phase="pending") == 3


def test_the_death_of_a_thread_is_reported(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """B8: what is no failure of database or log ends the process."""
    gauges = Gauges(settings)
    monkeypatch.setattr(gauges, "refresh", lambda *, heavy: json.loads("{"))
    gauges.worker.start()
    deadline = time.monotonic() + 30
    while gauges.worker.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(json.JSONDecodeError):
        gauges.worker.check()


def test_room_on_a_disk_is_read_when_it_is_scraped(tmp_path: Path) -> None:
    watch_disk("control", "data", tmp_path / "not" / "there" / "yet")
    free, size = (value(f"sluice_disk_{what}_bytes", flow="control", folder="data") for what in ("free", "size"))
    assert 0 < free < size
