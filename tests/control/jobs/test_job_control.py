"""Jobs as operators handle them: `control.jobs` on a real database."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest
from pydantic import ValidationError

from control import jobs
from control.jobs import IllegalTransition, JobNotFound, SpecInvalid
from schemas.job_spec import Job, JobSpec, JobStatus, Plan
from schemas.settings import Settings
from schemas.sql import queries

RELAY = "https://relay.test"
LETTERS = str.maketrans("0123456789", "abcdefghij")  # a DID of the PLC directory has no 0, 1, 8 and 9
DIDS = [f"did:plc:{n:024}".translate(LETTERS) for n in range(7)]
SPECS = [
    JobSpec(source="relay", relay=RELAY),
    JobSpec(source="hosts", hosts=["pds.test"]),
    JobSpec(source="hosts", hosts=["https://b.test", "A.test"]),
    JobSpec(source="dids", dids=DIDS),
    JobSpec(source="collection", collection="app.bsky.graph.verification", relay=RELAY),
]


@pytest.fixture
def settings(database: str) -> Settings:
    return Settings(database=database, relays=[RELAY])


@pytest.fixture
def db(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def started(db: psycopg.Connection, spec: JobSpec, settings: Settings) -> Job:
    job = jobs.start(db, spec, settings)
    assert isinstance(job, Job)
    return job


def put(db: psycopg.Connection, job: Job, status: str) -> None:
    db.execute("update sluice.backfill_job set status = %s where id = %s", (status, job.id))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.source)
def test_starting_the_same_source_again_finds_its_job(
    db: psycopg.Connection, settings: Settings, spec: JobSpec
) -> None:
    """R2: also with another order, another batch size, another priority; the cutoff stays."""
    first = started(db, spec, settings)
    assert (first.status, first.source) == (JobStatus.PENDING, spec.source)
    turned = {"hosts": spec.hosts[::-1] + spec.hosts, "dids": spec.dids[::-1] + spec.dids[:1]}
    again = started(db, spec.model_copy(update={**turned, "priority": 5, "batch_size": 10}), settings)
    assert (again.id, again.cutoff, again.total) == (first.id, first.cutoff, first.total)
    assert again.spec is not None
    assert (again.spec.priority, again.spec.batch_size) == (5, 10)
    assert [job.id for job in jobs.list_jobs(db)] == [first.id]


def test_the_cutoff_names_what_the_streams_had_reached(db: psycopg.Connection, settings: Settings) -> None:
    """R4"""
    db.execute("insert into sluice.cursor (flow, upstream, position) values ('firehose', %s, '4711')", (RELAY,))
    job = started(db, JobSpec(source="relay"), settings)
    assert job.cutoff.relay_seqs == {RELAY: 4711}
    assert job.cutoff.time == job.created_at
    db.execute("update sluice.cursor set position = '4800'")
    assert started(db, JobSpec(source="relay"), settings).cutoff == job.cutoff


def test_an_operator_pauses_resumes_cancels_and_retries(db: psycopg.Connection, settings: Settings) -> None:
    """T1, T3, T6: asking twice is asking once."""
    job = started(db, SPECS[0], settings)
    assert jobs.pause(db, job.id).status == jobs.pause(db, job.id).status == JobStatus.PAUSED
    assert jobs.resume(db, job.id).status == JobStatus.PENDING
    put(db, job, "running")
    assert jobs.pause(db, job.id).status == JobStatus.PAUSED
    assert jobs.resume(db, job.id).status == jobs.resume(db, job.id).status == JobStatus.RUNNING
    db.execute("update sluice.backfill_job set retry_count = 4, error = 'boom', status = 'failed'")
    failed = jobs.get(db, job.id)
    assert failed.completed_at is not None
    reopened = jobs.retry(db, job.id)
    assert (reopened.status, reopened.retry_count, reopened.error, reopened.completed_at) == ("retry", 0, None, None)
    assert reopened.resume_at is not None
    assert jobs.cancel(db, job.id).status == jobs.cancel(db, job.id).status == JobStatus.CANCELLED
    assert started(db, SPECS[0], settings).status == JobStatus.RETRY


def test_only_failures_in_a_row_end_a_job(db: psycopg.Connection, settings: Settings) -> None:
    """G5: a job that takes days met five failures, hours apart, and ended as failed."""
    job = started(db, SPECS[0], settings)
    statements = queries("jobs")

    def fail() -> tuple[str, int]:
        put(db, job, "running")
        db.execute(statements["back_off"], {"id": job.id, "seconds": 0.0, "error": "HTTP 500", "max_attempts": 3})
        now = jobs.get(db, job.id)
        return now.status, now.retry_count

    def listed(count: int) -> None:
        put(db, job, "running")
        counts = {"listed": count, "queued": 0, "duplicates": count, "checkpoint": json.dumps({"done": False})}
        db.execute(statements["advance"], {"id": job.id, **counts})

    assert [fail(), fail()] == [("retry", 1), ("retry", 2)]
    listed(1000)
    assert [fail(), fail()] == [("retry", 1), ("retry", 2)], "a page came in between"
    listed(0)
    assert fail() == ("failed", 3), "a checkpoint without entries is no success"


def test_what_a_state_does_not_allow_is_refused_and_changes_nothing(db: psycopg.Connection, settings: Settings) -> None:
    """T3"""
    job = started(db, SPECS[0], settings)
    with pytest.raises(IllegalTransition, match="only failed and cancelled"):
        jobs.retry(db, job.id)
    put(db, job, "running")
    put(db, job, "completed")
    before = jobs.get(db, job.id)
    for move in (jobs.pause, jobs.resume, jobs.cancel, jobs.retry):
        with pytest.raises(IllegalTransition, match=f"job {job.id} is completed"):
            move(db, job.id)
    assert jobs.get(db, job.id) == before
    assert started(db, SPECS[0], settings) == before
    for missing in (job.id + 1, 0, -1, 2**70):
        for move in (jobs.get, jobs.pause, jobs.resume, jobs.cancel, jobs.retry):
            with pytest.raises(JobNotFound):
                move(db, missing)


def test_a_dry_run_returns_its_plan_and_changes_nothing(db: psycopg.Connection, settings: Settings) -> None:
    """T4"""
    db.execute("insert into sluice.repo (did) values (%s)", (DIDS[0],))
    plan = jobs.start(db, SPECS[3].model_copy(update={"dry_run": True}), settings)
    assert isinstance(plan, Plan)
    assert (plan.would, plan.total, plan.new, plan.known, plan.items) == ("create", 7, 6, 1, DIDS)
    assert jobs.list_jobs(db) == []
    job = started(db, SPECS[1], settings)
    jobs.pause(db, job.id)
    plan = jobs.start(db, SPECS[1].model_copy(update={"dry_run": True}), settings)
    assert isinstance(plan, Plan)
    assert (plan.would, plan.job, plan.status, plan.items) == ("resume", job.id, "paused", ["https://pds.test"])
    assert jobs.get(db, job.id).status == JobStatus.PAUSED


def test_jobs_are_listed_in_pages_and_by_state(db: psycopg.Connection, settings: Settings) -> None:
    ids = [started(db, spec, settings).id for spec in SPECS]
    jobs.pause(db, ids[2])
    assert [job.id for job in jobs.list_jobs(db, limit=2)] == ids[:2]
    assert [job.id for job in jobs.list_jobs(db, after=ids[1], limit=2)] == ids[2:4]
    assert [job.id for job in jobs.list_jobs(db, status=JobStatus.PAUSED)] == [ids[2]]
    assert [job.source for job in jobs.list_jobs(db)] == [spec.source for spec in SPECS]


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"source": "dids", "dids": [DIDS[0], "nonsense"]}, "'nonsense' is not a DID"),
        ({"source": "dids", "dids": [DIDS[0], "did:plc:zzz"]}, "'did:plc:zzz' is not a DID; write did:plc: and 24 of"),
        ({"source": "collection", "collection": "x y"}, "'x y' is not an NSID; write it as app"),
        ({"source": "hosts", "hosts": ["https://h.test/path"]}, "write https://HOST"),
        ({"source": "hosts", "hosts": ["ftp://h.test"]}, "write https://HOST"),
        ({"source": "hosts", "hosts": ["http://127.0.0.1:1"]}, "SLUICE_ALLOW_PRIVATE_HOSTS"),
        ({"source": "relay", "relay": "http://[::1"}, "write https://HOST"),
    ],
)
def test_a_wrong_specification_is_one_line(
    db: psycopg.Connection, settings: Settings, asked: dict[str, object], error: str
) -> None:
    """G9"""
    with pytest.raises(SpecInvalid, match=error) as caught:
        jobs.start(db, JobSpec.model_validate(asked), settings)
    assert "\n" not in str(caught.value)
    assert jobs.list_jobs(db) == []


def test_a_relay_must_be_known_from_somewhere(db: psycopg.Connection, database: str) -> None:
    with pytest.raises(SpecInvalid, match="SLUICE_RELAYS"):
        jobs.start(db, JobSpec(source="relay"), Settings(database=database))


@pytest.mark.parametrize(
    "asked",
    [
        {"source": "dids"},
        {"source": "relay", "dids": DIDS},
        {"source": "hosts", "hosts": ["a.test"], "relay": RELAY},
        {"source": "relay", "batch_size": 0},
        {"source": "relay", "batch_size": 1001},
        {"source": "relay", "since": "2024-01-01"},
    ],
)
def test_a_specification_has_one_source(asked: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate(asked)
