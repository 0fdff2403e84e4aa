"""What a listing says of many repos never waits in a circle with the index, which locks some of the same ones."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg

from connectors.kafka.producer import LogProducer
from connectors.postgres.repo_queue import ListedRepo, RepoQueue
from control import jobs
from control.tasks.job_steps import JobSteps
from schemas.job_spec import JobSpec
from schemas.settings import Settings, load
from tests.support.flow_process import wait_until

FIRST, LAST = "did:plc:a", "did:plc:z"
WAITS = """
select 1 from pg_stat_activity
where application_name = 'sluice repos' and wait_event_type = 'Lock' and datname = current_database()
"""


def test_a_page_and_the_index_lock_the_same_repos(database: str) -> None:
    """G5: a page's later DID is written by one of its statements, its earlier one by another, and an index wants both."""
    store = RepoQueue(load(database=database))
    store.discover([ListedRepo(FIRST), ListedRepo(LAST)])
    failed: list[BaseException] = []

    def page() -> None:
        try:
            store.discover([ListedRepo(FIRST, "3l22222222222"), ListedRepo(LAST, "3l22222222222")])
        except BaseException as err:
            failed.append(err)

    with psycopg.connect(database, autocommit=True) as db, psycopg.connect(database) as index:
        db.execute(
            "update sluice.repo set phase = 'sync', rev = '3l2' where did = %s", (LAST,)
        )  # ahead; FIRST is raised
        index.execute("select from sluice.repo where did = %s for update", (FIRST,))
        thread = threading.Thread(target=page)
        thread.start()
        wait_until(lambda: db.execute(WAITS).fetchone(), what="the page waits for the index")
        index.execute("select from sluice.repo where did = %s for update", (LAST,))
        index.commit()
        thread.join(60)
        assert failed == []
        said = db.execute("select did, seen_rev, listed_rev from sluice.repo order by did").fetchall()
    assert said == [(FIRST, "3l22222222222", None), (LAST, "", "3l22222222222")]
    store.close()


def test_a_batch_of_a_job_and_the_index_lock_the_same_repos(
    settings_of: Callable[..., Settings], database: str
) -> None:
    """The batch inserts one repo and reopens another; the index locked the second and then wants the first."""
    first, last = "did:plc:" + "a" * 24, "did:plc:" + "z" * 24
    settings = settings_of(database=database)
    store = RepoQueue(settings)
    steps = JobSteps(settings, store, LogProducer(settings))
    failed: list[BaseException] = []

    def batch() -> None:
        try:
            steps.queue()
        except BaseException as err:
            failed.append(err)

    with psycopg.connect(database, autocommit=True) as db, psycopg.connect(database) as index:
        jobs.start(db, JobSpec(source="dids", dids=[first, last]), settings)
        store.discover([ListedRepo(last, active=False)])
        index.execute("select from sluice.repo where did = %s for update", (last,))
        thread = threading.Thread(target=batch)
        thread.start()
        wait_until(lambda: db.execute(WAITS).fetchone(), what="the batch waits for the index")
        index.execute("insert into sluice.repo (did) values (%s) on conflict do nothing", (first,))
        index.commit()
        thread.join(60)
        assert failed == []
        rows = db.execute("select did, phase from sluice.repo order by did").fetchall()
        assert rows == [(first, "pending"), (last, "pending")]
        assert db.execute("select listed, queued, duplicates from sluice.backfill_job").fetchall() == [(2, 1, 1)]
    steps.close()
    store.close()
