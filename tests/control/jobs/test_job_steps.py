"""What control does for jobs, on a real broker and a real database: lists of DIDs, counts, ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from connectors.kafka.log import LogUnavailable
from connectors.kafka.offsets import Offsets
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from control import jobs
from control.tasks.job_steps import JobSteps
from control.tasks.scheduler import Scheduler
from schemas import wire
from schemas.job_spec import Job, JobSpec
from schemas.settings import Settings
from tests.support.flow_process import read_topic, wait_until

LETTERS = str.maketrans("0123456789", "abcdefghij")  # a DID of the PLC directory has no 0, 1, 8 and 9
DIDS = [f"did:plc:{number:024}".translate(LETTERS) for number in range(60)]


@pytest.fixture
def settings(settings_of: Callable[..., Settings], database: str) -> Settings:
    return settings_of(database=database, requeue_after_seconds=0.2)


@pytest.fixture
def steps(settings: Settings, store: RepoQueue) -> JobSteps:
    return JobSteps(settings, store, LogProducer(settings))


def begin(store: RepoQueue, settings: Settings, dids: list[str], **more: Any) -> Job:
    job = jobs.start(store._database(), JobSpec(source="dids", dids=dids, **more), settings)
    assert isinstance(job, Job)
    return job


def queued(settings: Settings) -> Counter[str]:
    found = [
        wire.decode_task(one.value()) for one in read_topic(settings.kafka_bootstrap, settings.topic("repo_backfill"))
    ]
    return Counter(task.did for task in found)


def end(store: RepoQueue, phase: str, dids: list[str]) -> None:
    store._database().execute("update sluice.repo set phase = %s, rev = '3' where did = any(%s)", (phase, dids))


def counted(store: RepoQueue, steps: JobSteps, job: Job) -> Job:
    store._database().execute("update sluice.backfill_job set counted_at = counted_at - interval '1000 seconds'")
    steps.count()
    return jobs.get(store._database(), job.id)


def test_a_list_is_queued_once_counted_and_completed(settings: Settings, store: RepoQueue, steps: JobSteps) -> None:
    """P4, R5: what is known is not queued again; the job ends when each of its repos has come to an end."""
    store.discover([ListedRepo(DIDS[0])])
    job = begin(store, settings, DIDS, batch_size=25)
    assert [steps.queue() for _ in range(4)] == [24, 25, 10, 0]
    assert queued(settings) == Counter(DIDS[1:])
    assert {
        task[0] for task in store._database().execute("select job from sluice.repo where did <> %s", (DIDS[0],))
    } == {job.id}
    first = counted(store, steps, job)
    assert (first.status, first.checkpoint) == ("running", {"n": 60, "done": True})
    assert first.counts.model_dump() == {
        **{"listed": 60, "new": 59, "known": 1, "pending": 59},
        **dict.fromkeys(("in_sync", "synced", "failed", "unavailable"), 0),
    }
    end(store, "sync", DIDS[1:40])
    second = counted(store, steps, job)
    assert (second.status, second.counts.synced, second.counts.pending) == ("running", 39, 20)
    assert second.rate_per_second is not None
    assert 0.036 < second.rate_per_second < 0.04  # 39 repos in some thousand seconds
    assert second.eta_seconds == pytest.approx(20 / second.rate_per_second)
    end(store, "failed", DIDS[40:41])
    end(store, "unavailable", DIDS[41:])
    last = counted(store, steps, job)
    assert (last.status, last.counts.failed, last.counts.unavailable, last.counts.pending) == ("completed", 1, 19, 0)
    assert (last.eta_seconds, last.completed_at is None) == (None, False)


def test_a_job_is_not_completed_while_a_repo_has_never_been_fetched_but_a_desync_does_not_hold_it(
    settings: Settings, store: RepoQueue, steps: JobSteps
) -> None:
    """R4: the job is about the repos' first fetch; what happens to them later is the stream's."""
    job = begin(store, settings, DIDS[:2])
    steps.queue()
    end(store, "sync", DIDS[:1])
    assert counted(store, steps, job).status == "running"
    end(store, "sync", DIDS[1:2])
    end(store, "pending", DIDS[:1])  # it was in sync, and lost the thread since
    assert counted(store, steps, job).status == "completed"


def test_a_paused_or_cancelled_list_stops_and_resumes_at_its_checkpoint(
    settings: Settings, store: RepoQueue, steps: JobSteps
) -> None:
    """R2"""
    db = store._database()
    job = begin(store, settings, DIDS, batch_size=10)
    assert steps.queue() == 10
    jobs.pause(db, job.id)
    assert [steps.queue() for _ in range(3)] == [0, 0, 0]
    jobs.resume(db, job.id)
    assert steps.queue() == 10
    jobs.cancel(db, job.id)
    assert steps.queue() == 0
    again = begin(store, settings, DIDS, batch_size=10)
    assert (again.id, again.status, again.checkpoint) == (job.id, "retry", {"n": 20, "done": False})
    assert [steps.queue() for _ in range(5)] == [10, 10, 10, 10, 0]
    assert queued(settings) == Counter(DIDS)


def test_a_list_has_ten_batches_on_the_way_at_most(settings: Settings, store: RepoQueue, steps: JobSteps) -> None:
    """G6: nobody's list, however long, stands before everybody else's."""
    job = begin(store, settings, DIDS, batch_size=4)
    assert [steps.queue() for _ in range(12)] == [4] * 10 + [0, 0]
    end(store, "sync", DIDS[:8])
    assert [steps.queue() for _ in range(3)] == [4, 4, 0]
    assert jobs.get(store._database(), job.id).counts.listed == 48


def test_more_priority_comes_first(settings: Settings, store: RepoQueue) -> None:
    steps = JobSteps(settings.replaced(queue_batch=20), store, LogProducer(settings))
    begin(store, settings, DIDS[:20], batch_size=20)
    begin(store, settings, DIDS[20:40], batch_size=20, priority=5)
    begin(store, settings, DIDS[40:], batch_size=20)
    for dids in (DIDS[20:40], DIDS[:20], DIDS[40:]):
        before = queued(settings)
        assert steps.queue() == 20
        assert queued(settings) - before == Counter(dids)


class BrokenProducer(LogProducer):
    """A broker that goes away just now."""

    fired = 0

    def send(self, items: list[Out]) -> None:
        self.fired += 1
        raise LogUnavailable(f"{len(items)} messages")


def test_a_crash_between_rows_and_messages_loses_nothing_and_doubles_nothing(
    settings: Settings, store: RepoQueue
) -> None:
    """G1, R2: the batch is committed, its messages never left; `requeue` finds its rows."""
    broken = BrokenProducer(settings)
    job = begin(store, settings, DIDS)
    with pytest.raises(LogUnavailable):
        JobSteps(settings, store, broken).queue()
    assert broken.fired == 1
    assert queued(settings) == Counter()
    scheduler = Scheduler(settings, store, LogProducer(settings), Offsets(settings))
    wait_until(lambda: scheduler.step() and queued(settings) == Counter(DIDS))
    assert jobs.get(store._database(), job.id).counts.new == 60


def test_two_leaders_for_a_moment_queue_each_repo_once(settings: Settings, store: RepoQueue) -> None:
    """C2: the second waits for the job's row, and goes on where the first came to."""
    begin(store, settings, DIDS, batch_size=20)
    others = [RepoQueue(settings) for _ in range(2)]
    runners = [JobSteps(settings, one, LogProducer(settings)) for one in others]
    assert sum(runner.queue() for runner in runners for _ in range(3)) == 60
    assert queued(settings) == Counter(DIDS)
    for one in others:
        one.close()


def test_a_pause_that_comes_while_a_batch_is_written_waits_for_it(settings: Settings, store: RepoQueue) -> None:
    """T3: it sees the batch's checkpoint, and nothing is written behind it."""
    job = begin(store, settings, DIDS, batch_size=20)
    steps = JobSteps(settings, store, LogProducer(settings))
    with psycopg.connect(settings.database) as other:
        other.execute("select from sluice.backfill_job where id = %s for update", (job.id,))
        other.execute("update sluice.backfill_job set status = 'paused' where id = %s", (job.id,))
        other.commit()
        assert steps.queue() == 0
    assert jobs.get(store._database(), job.id).checkpoint == {}


def test_a_list_in_sync_is_reported_and_again_fetches_it_once(
    settings: Settings, store: RepoQueue, steps: JobSteps
) -> None:
    """R5: a job over repos in sync said "completed" and nothing else."""
    db = store._database()
    store.discover([ListedRepo(did) for did in DIDS])
    end(store, "sync", DIDS[:57])
    end(store, "failed", DIDS[57:])
    db.execute("update sluice.repo set attempt = 1, first_attempt = 1, queued_at = null")
    job = begin(store, settings, DIDS)
    steps.queue()
    first = counted(store, steps, job)
    assert (first.status, first.counts.known, first.counts.in_sync, first.counts.new) == ("completed", 60, 57, 0)
    assert jobs.known_of(settings, DIDS)[1] == 57
    scheduler = Scheduler(settings, store, LogProducer(settings), Offsets(settings))
    for name in ("again", "again 2"):
        again = begin(store, settings, DIDS, again=True)
        assert again.name == f"{job.name} {name}"
        assert begin(store, settings, DIDS, again=True).id == again.id
        steps.queue()
        db.execute("update sluice.backfill_job set checkpoint = '{}' where id = %s", (again.id,))
        steps.queue()  # as after a crash between the rows and the checkpoint
        scheduler.queue()
        running = counted(store, steps, again)
        assert (running.status, running.counts.in_sync, running.counts.pending) == ("running", 0, 60)
        rows = db.execute(
            "select count(*) from sluice.repo where phase = 'pending' and queued_at is not null"
        ).fetchone()
        assert rows == (60,)
        end(store, "sync", DIDS[:57])
        end(store, "failed", DIDS[57:])
        assert counted(store, steps, again).status == "completed"
