"""The incidents of claiming (C), job states (T) and phase gating (P) at their own size, on a real database with concurrent connections."""

from __future__ import annotations

import logging
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from connectors.postgres.migrate import migrate
from connectors.postgres.repo_queue import Claim, ListedRepo, RepoQueue
from control import jobs
from flows.index.decode import Batch, Decoded
from flows.index.sink import IndexWriter
from flows.index.store import IndexStore
from local.embedded.embedded_database import EmbeddedDatabase
from protocol.syntax import tid_from_micros
from schemas import wire
from schemas.job_spec import Job, JobSpec, JobStatus
from schemas.settings import Settings
from schemas.sql import queries
from steps.gate.batch import OffsetEvent
from steps.gate.model import Rules
from tests.support.flow_process import wait_until

SQL = queries("jobs")
WORKERS, REPOS = 8, 5000
JOBS = 300
HELD = 150
LIVE, BACKFILL = ("firehose_live", 0), ("firehose_backfill", 0)


def test_two_workers_with_the_same_messages_claim_each_repo_once(database: str) -> None:
    """C1, C2, C4: 8 workers on 8 connections, 5,000 messages each delivered to two; a killed worker's repos come back."""
    settings = Settings(database=database)
    store = RepoQueue(settings)
    dids = [f"did:plc:{number:024}" for number in range(REPOS)]
    tasks = store.discover([ListedRepo(did) for did in dids]).tasks
    assert len(tasks) == REPOS
    delivered: list[list[wire.RepoTask]] = [[] for _ in range(WORKERS)]
    batch = 100
    rng = random.Random(4)
    for task in tasks:
        for worker in rng.sample(range(WORKERS), 2):
            delivered[worker].append(task)
    rounds = range(0, max(map(len, delivered)), batch)
    together = threading.Barrier(WORKERS)

    def work(number: int) -> list[Claim]:
        mine = RepoQueue(settings)
        rng = random.Random(number)
        rng.shuffle(delivered[number])
        mine._database()
        claims: list[Claim] = []
        for at in rounds:
            together.wait(60)  # side by side to the end: one that is held up would find everything taken by the others
            claims += mine.claim(delivered[number][at : at + batch], f"worker {number}")
        mine.close()
        return claims

    with ThreadPoolExecutor(WORKERS) as pool:
        claimed = list(pool.map(work, range(WORKERS)))
    assert Counter(claim.did for claims in claimed for claim in claims) == Counter(dids)
    assert {claim.attempt for claims in claimed for claim in claims} == {1}
    assert min(len(claims) for claims in claimed) > 100  # each took part

    killed = {claim.did for claim in claimed[0]}
    db = store._database()
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


def test_three_hundred_jobs_complete_through_failures_retries_and_clocks_that_disagree(
    private_postgres: EmbeddedDatabase,
) -> None:
    """T1, T2, T3, T6: no statement is refused, by the database's own log; the incident had 0 of 300 done."""
    database = private_postgres.url
    migrate(database)
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
    assert _errors(private_postgres) == []
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("set session_replication_role = replica")  # past the trigger that would mend it
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute("update sluice.backfill_job set completed_at = started_at - interval '1 second' where id = 1")
    wait_until(lambda: _errors(private_postgres), what="the log shows a violation where there is one")
    assert "violates check constraint" in _errors(private_postgres)[0]


def _errors(server: EmbeddedDatabase) -> list[str]:
    """What the server's log file says of statements that it refused."""
    lines = (server.data_dir / "postgres.log").read_text().splitlines()
    return [line for line in lines if re.search(r"\b(ERROR|PANIC):", line)]


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


def test_what_arrives_during_a_backfill_is_released_in_one_step(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """P1, P2, P3, P5: 150 events, none bounced; the index's session is killed in the middle, which leaves neither half."""
    caplog.set_level(logging.INFO)
    settings, did = Settings(database=database), f"did:plc:{0:024}"
    store = RepoQueue(settings)
    assert store.claim(store.discover([ListedRepo(did)]).tasks, "w")
    tables = IndexStore(settings, "a cluster", None)
    writer = IndexWriter(settings, tables, Rules(), _NoLetters())
    tables.starts({LIVE: (0, HELD), BACKFILL: (0, 2)})
    for at in range(0, HELD, 30):
        events = [OffsetEvent(number, _commit(did, number)) for number in range(at, at + 30)]
        writer.write(Decoded(Batch([], {LIVE: (at, at + 30)}), {did: events}))
    db = store._database()
    before = _halves(db)
    assert before == ("backfill", HELD, 0, 0)

    first = wire.CreateEvent(
        did=did, attempt=1, rev=rev_of(0), collection="c.o.l", rkey="first", cid="1", time="t", commit="c"
    )
    outcome = wire.RepoOutcome(
        did=did, attempt=1, status="synced", active=True, time="t", rev=rev_of(0), commit="c", data=rev_of(0), count=1
    )
    end = Decoded(Batch([], {BACKFILL: (0, 2)}), {did: [OffsetEvent(0, first), OffsetEvent(1, outcome)]})
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database) as other:
        # it has written everything, and waits for the last statement before the commit
        other.execute("select from sluice.stream_offset for update")
        writing = pool.submit(writer.write, end)
        killed = wait_until(lambda: db.execute(KILL_WHO_WAITS).fetchall())
        wait_until(lambda: "transaction rolled back" in caplog.messages)
        assert _halves(db) == before
        other.rollback()
        writing.result(60)
    assert len(killed) == 1
    assert _halves(db) == ("sync", 0, HELD + 1, 2)
    assert db.execute("select rev, data, seen_rev from sluice.repo").fetchone() == (rev_of(150), rev_of(150), "")
    assert [line for line in caplog.messages if line.startswith("released")][-1] == f"released {HELD}/{HELD}"
    tables.close()
    store.close()


KILL_WHO_WAITS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock' and query like '%stream_offset%'
"""


class _NoLetters:
    def send(self, messages: object) -> object:
        raise AssertionError(messages)


def rev_of(number: int) -> str:
    """The revs of a chain."""
    return tid_from_micros(number)


def _commit(did: str, number: int) -> wire.CommitEvent:
    """Commit `number` of a chain: record `number` is created."""
    rev, before = rev_of(number + 1), rev_of(number)
    op = wire.Op(action="create", collection="c.o.l", rkey=before, cid="1")
    return wire.CommitEvent(
        seq=number, time="t", did=did, rev=rev, commit=rev, commit_block="AAAA", data=rev, prev_data=before, ops=[op]
    )


def _halves(db: psycopg.Connection[tuple[Any, ...]]) -> tuple[str, int, int, int]:
    """Phase, buffered events, records, and where the index stands in the backfill."""
    row = db.execute(
        "select phase, (select count(*) from sluice.buffered_event), (select count(*) from sluice.record),"
        " (select next from sluice.stream_offset where topic = 'firehose_backfill') from sluice.repo"
    ).fetchone()
    assert row is not None
    return row
