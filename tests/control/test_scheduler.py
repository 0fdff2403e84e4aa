"""The scheduler and the reaper on a real broker and database: rows become messages, and lost work becomes due again."""

import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition

from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.offsets import Offsets
from connectors.kafka.producer import LogProducer
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from control.tasks.scheduler import Leader, Scheduler, lost_tasks, task_topic
from local.commands import environment
from local.embedded.guarded_process import free_port
from schemas import wire
from schemas.settings import Settings
from steps.partitioner import partition_of
from tests.support import zygote
from tests.support.broker import LogScope
from tests.support.flow_process import WAIT_SECONDS, read_topic, wait_until
from tests.support.tcp_proxy import Proxy

START_SECONDS = 120.0
STOP_SECONDS = 30.0  # within what a pod is given
DIDS = [f"did:plc:{number:024}" for number in range(20)]


@pytest.fixture
def settings(settings_of: Callable[..., Settings], database: str) -> Settings:
    """With short times. A message counts as that of its row only if it was written within `requeue_after_seconds` of it."""
    return settings_of(
        database=database,
        requeue_after_seconds=0.2,
        control_interval_seconds=0.05,
        lease_seconds=2,
        transport_session_seconds=60,
    )


def patient(settings: Settings, **more: Any) -> Settings:
    """For a process beside the test: it takes no message for lost because the machine stood still for a moment."""
    return settings.replaced(requeue_after_seconds=300.0, **more)


@pytest.fixture
def scheduler(settings: Settings, store: RepoQueue) -> Scheduler:
    return Scheduler(settings, store, LogProducer(settings), Offsets(settings))


def rows(store: RepoQueue, what: str) -> dict[str, object]:
    return dict(store._database().execute(f"select did, {what} from sluice.repo").fetchall())


def messages(settings: Settings, topic: str) -> list[wire.RepoTask]:
    """Everything in a topic."""
    found = read_topic(settings.kafka_bootstrap, settings.topic(topic))
    return [wire.decode_task(message.value()) for message in found]


def read_as_backfill(settings: Settings, count: int) -> None:
    """Read that many tasks and commit them, as a worker does that finds nothing to claim."""
    consumer = GroupConsumer(settings, "backfill", ["repo_resync", "repo_backfill"])
    positions: dict[tuple[str, int], int] = {}
    seen: set[tuple[str, int, int]] = set()
    deadline = time.monotonic() + WAIT_SECONDS
    while len(seen) < count:
        assert time.monotonic() < deadline, f"{len(seen)} of {count} read"
        for message in consumer.poll(100):
            positions[message.topic(), message.partition()] = message.offset() + 1
            seen.add((message.topic(), message.partition(), message.offset()))
    consumer.commit(positions)
    consumer.close()


def test_first_fetches_and_later_ones_go_to_their_own_topics(
    settings: Settings, store: RepoQueue, scheduler: Scheduler
) -> None:
    """A desynced repo does not queue behind the whole network's backfill."""
    store.discover([ListedRepo(did) for did in DIDS])
    store._database().execute("update sluice.repo set queued_at = null")
    store._database().execute("update sluice.repo set attempt = 3, reason = 'desync' where did = any(%s)", (DIDS[:5],))
    assert scheduler.queue() == len(DIDS)
    resync = messages(settings, "repo_resync")
    assert {task.did for task in resync} == set(DIDS[:5])
    assert {(task.attempt, task.reason) for task in resync} == {(3, "desync")}
    assert {task.did for task in messages(settings, "repo_backfill")} == set(DIDS[5:])
    assert None not in rows(store, "queued_at").values()
    assert scheduler.queue() == 0


def test_what_is_not_due_waits(store: RepoQueue, scheduler: Scheduler) -> None:
    store.discover([ListedRepo(did) for did in DIDS])
    store._database().execute("update sluice.repo set queued_at = null, next_retry_at = now() + interval '1 hour'")
    assert scheduler.queue() == 0


def test_a_row_whose_message_was_never_sent_is_queued_again(
    settings: Settings, store: RepoQueue, scheduler: Scheduler
) -> None:
    """G1, C4: list_repos died between the row and its message."""
    store.discover([ListedRepo(did) for did in DIDS])
    wait_until(lambda: scheduler.requeue() == len(DIDS))
    assert scheduler.queue() == len(DIDS)
    assert {task.did for task in messages(settings, "repo_backfill")} == set(DIDS)


def test_a_row_whose_message_waits_is_left_alone(settings: Settings, store: RepoQueue, scheduler: Scheduler) -> None:
    """P4: a long queue is not a lost message; only a message that the group has passed is."""
    store.discover([ListedRepo(did) for did in DIDS])
    (now,) = store._database().execute(
        "update sluice.repo set queued_at = now() - interval '1 hour' returning extract(epoch from queued_at)::float8"
    ).fetchone() or (0.0,)
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    for did in DIDS:  # an hour ago, each with its row: as the scheduler sends them, but for the time
        value = wire.encode(wire.RepoTask(did=did, attempt=0, reason="listed"))
        written = {"partition": partition_of(did, settings.kafka_partitions), "timestamp": int(now * 1000) + 1}
        producer.produce(settings.topic("repo_backfill"), value, did, **written)
    assert producer.flush(WAIT_SECONDS) == 0
    queued = rows(store, "queued_at")
    assert scheduler.requeue() == 0
    assert rows(store, "queued_at") == queued
    read_as_backfill(settings, len(DIDS))
    wait_until(lambda: scheduler.requeue() == len(DIDS))
    assert set(rows(store, "queued_at").values()) == {None}


def test_a_message_that_retention_removed_counts_as_passed(
    settings: Settings, store: RepoQueue, scheduler: Scheduler, log_scope: LogScope
) -> None:
    store.discover([ListedRepo(did) for did in DIDS])
    store._database().execute("update sluice.repo set queued_at = null")
    scheduler.queue()
    ends = [TopicPartition(settings.topic("repo_backfill"), part, -1) for part in range(settings.kafka_partitions)]
    for future in log_scope.admin.delete_records(ends).values():
        future.result(WAIT_SECONDS)
    wait_until(lambda: scheduler.requeue() == len(DIDS))


def test_only_the_passed_partition_of_the_right_topic_counts() -> None:
    did = DIDS[0]
    mine = partition_of(did, 2)
    queued = [(did, 0, 1.0)]
    nowhere = {(topic, part): False for topic in ("repo_backfill", "repo_resync") for part in range(2)}
    assert task_topic(0) == "repo_backfill"
    assert task_topic(2) == "repo_resync"
    assert lost_tasks(queued, nowhere) == []
    assert lost_tasks(queued, nowhere | {("repo_resync", mine): True, ("repo_backfill", 1 - mine): True}) == []
    assert lost_tasks(queued, nowhere | {("repo_backfill", mine): True}) == [did]


def test_an_expired_lease_is_reaped_and_queued_again(
    settings: Settings, store: RepoQueue, scheduler: Scheduler
) -> None:
    """C4: a worker that died leaves nothing stuck."""
    store.discover([ListedRepo(DIDS[0])])
    task = wire.RepoTask(did=DIDS[0], attempt=0, reason="listed")
    assert len(store.claim([task], "a worker that dies")) == 1
    wait_until(lambda: scheduler.step().reaped == 1)
    store._database().execute("update sluice.repo set next_retry_at = now()")
    assert scheduler.queue() == 1
    assert [(task.did, task.attempt) for task in messages(settings, "repo_resync")] == [(DIDS[0], 1)]
    assert rows(store, "retry_count") == {DIDS[0]: 1}


def test_an_attempt_that_the_index_passed_without_closing_is_reaped(
    settings: Settings, store: RepoQueue, scheduler: Scheduler
) -> None:
    """Design §5.3: the lease no longer runs once the outcome is produced; the index's offset decides."""
    store.discover([ListedRepo(DIDS[0])])
    (claim,) = store.claim([wire.RepoTask(did=DIDS[0], attempt=0, reason="listed")], "w")
    part = partition_of(DIDS[0], 2)
    store.produced([(claim.did, claim.attempt, part, 7)])
    assert scheduler.step().reaped == 0
    offset = (Offsets(settings).cluster, settings.group("index"), settings.topic("firehose_backfill"), part)
    statement = "insert into sluice.stream_offset (cluster, group_id, topic, part, next) values (%s, %s, %s, %s, %s)"
    store._database().execute(statement, (*offset, 7))
    assert scheduler.step().reaped == 0
    store._database().execute("update sluice.stream_offset set next = 8")
    assert scheduler.step().reaped == 1


def test_one_of_two_leads_and_the_other_takes_over(settings: Settings) -> None:
    first, second = Leader(settings), Leader(settings)
    assert first.leads()
    assert not second.leads()
    assert first.leads()
    with psycopg.connect(settings.database, autocommit=True) as db:
        killed = db.execute(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where application_name = 'sluice leader' and pid in (select pid from pg_locks where locktype = 'advisory')"
            " and datname = current_database()"
        ).fetchone()
    assert killed == (1,)  # the fault fired
    wait_until(second.leads)
    with pytest.raises(psycopg.OperationalError):
        first.leads()
    assert not first.leads()
    first.close()
    second.close()


@contextmanager
def running_control(settings: Settings, folder: Path) -> Iterator[tuple[zygote.Forked, int]]:
    """A real control process, and its HTTP port. If the block fails, the end of the process's log is printed."""
    port = free_port()
    log_file = folder / f"control-{port}.log"
    with log_file.open("w") as log:
        files = {"stdout": log.fileno(), "stderr": log.fileno()}
        process = zygote.spawn(["sluice", "run", "control"], env={**os.environ, **environment(settings, port)}, **files)
    try:
        yield process, port
    except BaseException:
        print(f"control at {port}, exit code {process.poll()}: {page(port, '/readyz')}\n{log_file.read_text()[-4000:]}")
        raise
    finally:
        process.kill()
        process.wait()


def page(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_a_killed_leader_is_followed_by_the_one_that_stood_by(
    settings: Settings, store: RepoQueue, tmp_path: Path
) -> None:
    """C4, G1: kill -9 of the leader; its lock ends with its session, and the other process queues what is due."""
    mine = patient(settings)
    with running_control(mine, tmp_path) as one, running_control(mine, tmp_path) as other:

        def leading() -> list[tuple[zygote.Forked, int]]:
            pages = {port: page(port, "/readyz") for _, port in (one, other)}
            leaders = [each for each in (one, other) if "another control process leads" not in pages[each[1]]]
            return leaders if len(leaders) == 1 and all('"ready": true' in text for text in pages.values()) else []

        ((leader, _),) = wait_until(leading, START_SECONDS)
        leader.kill()
        assert leader.wait(WAIT_SECONDS) == -signal.SIGKILL  # the fault fired
        store.discover([ListedRepo(did) for did in DIDS])
        store._database().execute("update sluice.repo set queued_at = null")
        wait_until(lambda: len(messages(settings, "repo_backfill")) == len(DIDS))
        (stood_by, port) = other if leader is one[0] else one
        wait_until(lambda: "another control process leads" not in page(port, "/readyz"))
        stood_by.send_signal(signal.SIGTERM)
        assert stood_by.wait(STOP_SECONDS) == 0


def _lag(text: str) -> float:
    lines = [line for line in text.splitlines() if line.startswith("sluice_consumer_lag{") and "repo_backfill" in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_the_process_queues_serves_its_health_and_stops_at_once(
    settings: Settings, store: RepoQueue, log_proxy: Proxy, tmp_path: Path
) -> None:
    """B11, C4, G1: due work is queued and lag is exported.

    Without its broker control lives on, reports why it waits, queues later what was due, and stops at once meanwhile.
    """
    behind = patient(settings, kafka_bootstrap=log_proxy.address)

    def waits(port: int) -> bool:
        shown = page(port, "/readyz")
        return '"failing"' in shown and log_proxy.address in shown

    def queues(port: int, count: int) -> None:
        store._database().execute("update sluice.repo set queued_at = null")
        wait_until(lambda: len(messages(settings, "repo_backfill")) == count, START_SECONDS)
        wait_until(lambda: _lag(page(port, "/metrics")) == count, START_SECONDS)

    with running_control(behind, tmp_path) as (process, port):
        wait_until(lambda: '"ready": true' in page(port, "/readyz"), START_SECONDS)
        store.discover([ListedRepo(did) for did in DIDS])
        queues(port, len(DIDS))
        log_proxy.refuse()
        wait_until(lambda: waits(port), START_SECONDS)
        log_proxy.restore()
        queues(port, 2 * len(DIDS))
        log_proxy.refuse()
        wait_until(lambda: waits(port), START_SECONDS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
