"""The incidents of claiming (C) and of job states (T) at their own size, on a real database with concurrent connections."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg

from connectors.repos import Claim, Listed, RepoStore
from control import jobs
from schemas import wire
from schemas.jobs import Job, JobSpec, JobStatus
from schemas.settings import Settings
from schemas.sql import queries

SQL = queries("jobs")
WORKERS, REPOS = 8, 5000
JOBS = 300


def test_each_message_goes_to_two_workers_and_each_repo_is_claimed_once(database: str) -> None:
    """C1, C2, C4: 8 workers on 8 connections, 5,000 messages each delivered to two; a killed worker's repos come back."""
    settings = Settings(database=database)
    store = RepoStore(settings)
    dids = [f"did:plc:{number:024}" for number in range(REPOS)]
    tasks = store.discover([Listed(did) for did in dids]).tasks
    assert len(tasks) == REPOS
    delivered: list[list[wire.RepoTask]] = [[] for _ in range(WORKERS)]
    rng = random.Random(4)
    for task in tasks:
        for worker in rng.sample(range(WORKERS), 2):
            delivered[worker].append(task)
    together = threading.Barrier(WORKERS)

    def work(number: int) -> list[Claim]:
        mine = RepoStore(settings)
        rng = random.Random(number)
        rng.shuffle(delivered[number])
        together.wait(30)
        claims: list[Claim] = []
        for at in range(0, len(delivered[number]), 100):
            claims += mine.claim(delivered[number][at : at + 100], f"worker {number}")
        mine.close()
        return claims

    with ThreadPoolExecutor(WORKERS) as pool:
        claimed = list(pool.map(work, range(WORKERS)))
    assert Counter(claim.did for claims in claimed for claim in claims) == Counter(dids)
    assert {claim.attempt for claims in claimed for claim in claims} == {1}
    assert min(len(claims) for claims in claimed) > 100  # each took part

    killed = {claim.did for claim in claimed[0]}
    db = store.connection()
    db.execute("update sluice.repo set lease_until = now() - interval '1 second' where worker = 'worker 0'")
    reaped: dict[str, str] = {}
    while taken := store.reap("a cluster", 0.0):
        reaped |= taken
    assert reaped == dict.fromkeys(killed, "pending")
    again = store.due(REPOS)
    assert {(task.did, task.attempt) for task in again} == {(did, 1) for did in killed}
    assert {claim.did for claim in store.claim(again, "worker 8")} == killed
    assert dict(db.execute("select phase, count(*) from sluice.repo group by phase").fetchall()) == {"backfill": REPOS}
    store.close()


def test_three_hundred_jobs_complete_through_failures_retries_and_clocks_that_disagree(database: str) -> None:
    """T1, T2, T3, T6: no statement is refused, whatever fails between; the incident had 0 of 300 done."""
    settings = Settings(database=database)
    with psycopg.connect(database, autocommit=True) as db:
        made = [jobs.start(db, JobSpec(source="hosts", hosts=[f"h{n}.test"]), settings) for n in range(JOBS)]
        numbers = [job.id for job in made if isinstance(job, Job)]
    assert len(numbers) == JOBS
    fired: Counter[str] = Counter()
    turn = threading.Lock()

    def count(what: str) -> None:
        with turn:
            fired[what] += 1

    def carry_out(part: list[int]) -> None:
        rng = random.Random(part[0])
        with psycopg.connect(database, autocommit=True) as db:
            for number in part:
                while jobs.get(db, number).status is not JobStatus.COMPLETED:
                    _one_step(db, number, rng, count)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(carry_out, [numbers[at::4] for at in range(4)]))
    with psycopg.connect(database) as db:
        done = db.execute("select status, count(*) from sluice.backfill_job group by status").fetchall()
        wrong = db.execute("select count(*) from sluice.backfill_job where not completed_at >= started_at").fetchone()
    assert done == [("completed", JOBS)]
    assert wrong == (0,)
    assert set(fired) == {"back_off", "failed", "retried", "quota", "paused", "clock ahead", "clock behind", "crash"}
    assert min(fired.values()) > 20


def _one_step(db: psycopg.Connection, number: int, rng: random.Random, count: Callable[[str], None]) -> None:
    """What a job may meet in a moment of its life; any constraint that is violated raises here."""
    status = jobs.get(db, number).status
    if status is JobStatus.FAILED:
        jobs.retry(db, number)
        count("retried")
    elif status is JobStatus.PAUSED:
        jobs.resume(db, number)
    elif status is not JobStatus.RUNNING:
        db.execute(SQL["run"], {"id": number})
    else:
        what = rng.choice(
            ["back_off", "quota", "paused", "clock ahead", "clock behind", "crash", "complete", "complete"]
        )
        if what == "back_off":
            values = {"id": number, "seconds": 0.0, "error": "HTTP 500", "max_attempts": 2}
            (became,) = db.execute(SQL["back_off"], values).fetchone() or ("",)
            count("failed" if became == "failed" else "back_off")
        elif what == "quota":
            db.execute(SQL["wait_for_quota"], {"id": number, "seconds": 0.0, "error": "429"})
            count(what)
        elif what == "paused":
            jobs.pause(db, number)
            count(what)
        elif what == "complete":
            values = {"id": number, "listed": 0, "queued": 0, "duplicates": 0, "checkpoint": '{"done": true}'}
            db.execute(SQL["advance"], values)
            db.execute(SQL["complete"], {"id": number})
        else:
            count(what)
            with db.transaction(force_rollback=what == "crash"):
                hours = "-26 hours" if what == "clock behind" else "26 hours"
                db.execute("set local session_replication_role = replica")  # as if another clock had written them
                db.execute(
                    "update sluice.backfill_job set started_at = now() + %s::interval where id = %s", (hours, number)
                )
