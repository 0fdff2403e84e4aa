"""MirrorStatus and tables: what an operator sees is what the tables and the broker say."""

import io
import json
import os
import subprocess
import time
from collections.abc import Callable

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from rich.console import Console

from cli.settings_text import page as settings_page
from cli.status_text import page, rows, table
from connectors.kafka.offsets import Offsets, PartitionLag
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from control.status import JOBS_SHOWN, Collector, MirrorStatus
from local.progress_view import ProgressView, plain, problems, rated
from local.view.live_view import Part
from schemas.settings import PUBLIC, Settings, load
from tests.support import zygote

DIDS = [f"did:plc:{number:024}" for number in range(5)]


@pytest.fixture
def settings(settings_of: Callable[..., Settings], database: str) -> Settings:
    return settings_of(database=database)


@pytest.fixture
def status(settings: Settings) -> MirrorStatus:
    """A mirror with one repo in each phase, a failing host, a paused host, a past-end group, and dead letters."""
    RepoQueue(settings).discover([ListedRepo(did) for did in DIDS])
    with psycopg.connect(settings.database, autocommit=True) as db:
        for did, phase in zip(DIDS, ("pending", "backfill", "sync", "unavailable", "failed"), strict=True):
            db.execute("update sluice.repo set phase = %s, last_error = 'boom' where did = %s", (phase, did))
        db.execute(
            "insert into sluice.host (host, consecutive_failures, last_error, paused_until, pause_reason) values"
            " ('https://bad.test', 3, 'HTTP 500', null, null),"
            " ('https://full.test', 0, null, now() + interval '10 minutes', 'rate limit')"
        )
        db.execute(
            "insert into sluice.cursor (flow, upstream, position) values ('firehose', 'https://relay.test', '42')"
        )
        db.execute(
            "insert into sluice.dead_letter (part, log_offset, topic, reason, error)"
            " values (0, 0, 'firehose_live', 'bad_frame', 'cut')"
        )
        place = (Offsets(settings).cluster, settings.group("index"), settings.topic("label_live"))
        db.execute(
            "insert into sluice.stream_offset (cluster, group_id, topic, part, next) values (%s, %s, %s, 0, 9)", place
        )
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    for number in range(3):
        producer.produce(settings.topic("firehose_live"), b"{}", str(number), partition=number % 2)
    assert producer.flush(60) == 0
    collector = Collector(settings)
    seen = collector.collect()
    collector.close()
    return seen


def test_counts_lag_and_troubles(status: MirrorStatus) -> None:
    """B9, B11, C5: phases, lag, what fails and why, what is paused, and a group past the end of its topic."""
    assert status.repos == {"pending": 1, "backfill": 1, "sync": 1, "unavailable": 1, "failed": 1, "excluded": 0}
    assert status.lag["index", "firehose_live"] == 3
    assert status.lag["backfill", "repo_backfill"] == 0
    assert status.events == 3
    assert status.failures == [{"last_error": "boom", "count": 1}]
    assert status.dead_letters == {"open": 1}
    assert len(status.paused) == 1
    assert status.paused[0].startswith("https://full.test: rate limit for ")
    told = " ".join(problems(status))
    assert "https://bad.test: 3 failures in a row (HTTP 500)" in told
    assert "past the end of label_live" in told
    assert "dead letters: 1 open" in told


def test_pages_and_json_carry_the_same(status: MirrorStatus) -> None:
    text = page(status)
    assert "pending 1  backfill 1  sync 1  unavailable 1  failed 1" in text
    assert "cursor   firehose https://relay.test at 42" in text
    assert "failed   1 repos: boom" in text
    read = json.loads(json.dumps(status.as_json()))
    assert read["lag"]["index/firehose_live"] == 3
    past = [standing for standing in read["partition_lags"] if standing["past_end"]]
    assert [(standing["topic"], standing["position"], standing["end"]) for standing in past] == [("label_live", 9, 0)]


def test_jobs_are_bounded_and_an_empty_cursor_is_the_first_page(status: MirrorStatus, settings: Settings) -> None:
    """R5, B11: what is not over first; a mirror of every PDS has a job for each."""
    with psycopg.connect(settings.database, autocommit=True) as db:
        db.execute(
            "insert into sluice.backfill_job (name, kind, hosts) select 'list https://h' || n, 'pds', array['https://h' || n]"
            f" from generate_series(1, {JOBS_SHOWN + 5}) n"
        )
        db.execute("update sluice.backfill_job set status = 'running' where id = 3 or id > 7")
        db.execute("update sluice.backfill_job set status = 'completed' where id > 7")
        db.execute("update sluice.cursor set position = ''")
    collector = Collector(settings)
    seen = collector.collect()
    collector.close()
    assert (len(seen.jobs), seen.jobs_found) == (JOBS_SHOWN, JOBS_SHOWN + 5)
    assert [job["id"] for job in seen.jobs[:8]] == [7, 6, 5, 4, 3, 2, 1, JOBS_SHOWN + 5]
    text = page(seen)
    assert "job      5 more: `sluice backfill list`" in text
    assert "cursor   firehose https://relay.test at the first page, " in text


def test_tables_are_plain_reads(status: MirrorStatus, settings: Settings) -> None:
    found = rows(settings, "dead_letters", {"state": "open", "limit": 10})
    assert [(row["reason"], row["error"]) for row in found] == [("bad_frame", "cut")]
    assert rows(settings, "dead_letters", {"state": "retried", "limit": 10}) == []
    assert "bad_frame" in table(found)
    assert table([]) == "none"
    assert rows(settings, "skipped", {"limit": 10}) == []


def sluice(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    env |= {"SLUICE_DATABASE": settings.database}
    return zygote.run(["sluice", *arguments], env=env, timeout=120)


def test_retry_puts_failed_repos_back_with_all_fields_reset(status: MirrorStatus, settings: Settings) -> None:
    """T6: failed work is pending again, nothing of the failure is left; what has not failed is not touched."""
    with psycopg.connect(settings.database, autocommit=True) as db:
        db.execute(
            "update sluice.repo set retry_count = 5, completed_at = now(), queued_at = now() where phase = 'failed'"
        )
        ended = sluice(settings, "backfill", "retry", DIDS[4], DIDS[0])
        assert (ended.returncode, ended.stdout) == (0, "retried 1\n")
        assert f"{DIDS[0]} is not failed, or unknown" in ended.stderr
        reset = "phase, reason, retry_count, last_error, queued_at, completed_at, started_at, lease_until"
        row = db.execute(f"select {reset} from sluice.repo where did = %s", (DIDS[4],)).fetchone()
        assert row == ("pending", "retry", 0, None, None, None, None, None)
    assert sluice(settings, "backfill", "retry", DIDS[1]).returncode == 1
    assert sluice(settings, "backfill", "retry", "--all").stdout == "retried 0\n"


def test_lag_does_not_count_what_the_log_has_lost() -> None:
    standing = PartitionLag("index", "firehose_live", 0, start=10, position=4, end=25)
    assert (standing.lag, standing.lost, standing.past_end) == (15, 6, False)


def test_the_position_of_the_backfill_group_is_the_brokers(settings: Settings) -> None:
    from confluent_kafka import Consumer

    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    for _ in range(5):
        producer.produce(settings.topic("repo_backfill"), b"{}", "k", partition=1)
    assert producer.flush(60) == 0
    reader = Consumer({"bootstrap.servers": settings.kafka_bootstrap, "group.id": settings.group("backfill")})
    reader.commit(offsets=[TopicPartition(settings.topic("repo_backfill"), 1, 2)], asynchronous=False)
    reader.close()
    with psycopg.connect(settings.database, autocommit=True) as db:
        standings = Offsets(settings).lags(db)
    mine = [s for s in standings if (s.group, s.topic, s.partition) == ("backfill", "repo_backfill", 1)]
    assert [(s.start, s.position, s.end, s.lag) for s in mine] == [(0, 2, 5, 3)]


def test_rates_are_since_the_previous_poll(status: MirrorStatus) -> None:
    from dataclasses import replace

    later = rated(replace(status, records=status.records + 100), status.records, status.events, 4.0)
    assert later.records_per_second == 25.0
    assert later.events_per_second == 0.0
    assert "(25/s)" in plain(later, 0)


def test_progress_is_lines_in_a_file_and_a_view_on_a_terminal(status: MirrorStatus) -> None:
    written, shown = io.StringIO(), io.StringIO()
    ticks = iter((0.0, 1.0, 2.5))
    with ProgressView(Console(file=written, width=400), clock=lambda: next(ticks)) as progress:
        for _ in range(3):
            progress.show(status, [Part("index", True, 2)])
        progress.note("index", "ended by SIGKILL")
    lines = written.getvalue().splitlines()
    assert len([line for line in lines if "repos: pending 1" in line]) == 2, "every two seconds"
    assert "restarts: 2" in lines[0]
    assert lines[-1].endswith("index: ended by SIGKILL")
    with ProgressView(Console(file=shown, force_terminal=True, width=200), clock=time.monotonic) as progress:
        progress.note("index", "ended by SIGKILL")
        progress.show(status, [Part("index", True, 2)])
    assert "unavailable" in shown.getvalue()
    assert "ended by SIGKILL" in shown.getvalue()


def test_settings_show_every_variable_and_no_password() -> None:
    text = settings_page(load(database="postgresql://me:secret@h/db", kafka_partitions=8))
    for name in PUBLIC:
        assert f"SLUICE_{name.upper()} = " in text
    assert "secret" not in text
    assert "* SLUICE_KAFKA_PARTITIONS = 8   (default: 32)" in text
