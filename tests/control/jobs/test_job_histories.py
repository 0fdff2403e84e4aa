"""Random histories of a job on a real PostgreSQL: operators, flows, control, stray updates, crashes, clocks that disagree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control import jobs
from control.jobs import IllegalTransition
from schemas.job_spec import Job, JobSpec, JobStatus
from schemas.settings import Settings
from schemas.sql import queries
from steps.job_states import FINAL, TRANSITIONS, WAITING
from tests.support.postgres import fresh_database

SQL = queries("jobs")
NUMBERS = count()
FIRED: Counter[str] = Counter()

SYSTEM: dict[str, dict[str, Any]] = {
    "run": {},
    "wait_for_quota": {"seconds": 0.0, "error": "429"},
    "back_off": {"seconds": 0.0, "error": "HTTP 500", "max_attempts": 3},
    "advance": {"listed": 5, "queued": 3, "duplicates": 2, "checkpoint": json.dumps({"n": 5, "done": True})},
    "count": {"synced": 1, "failed": 0, "unavailable": 1, "pending": 1, "memory": 0.7},
    "complete": {},
}
step = st.one_of(
    st.tuples(st.just("operator"), st.sampled_from(["start", "pause", "resume", "cancel", "retry"])),
    st.tuples(st.just("system"), st.sampled_from(sorted(SYSTEM))),
    st.tuples(st.just("stray"), st.sampled_from(list(JobStatus))),
    st.tuples(st.just("crash"), st.sampled_from(sorted(SYSTEM))),
    st.tuples(st.just("clock"), st.sampled_from([-86400, -1, 1, 86400])),
)


@pytest.fixture(scope="module")
def sessions(postgres: str, migrated_template: str) -> Iterator[tuple[psycopg.Connection, psycopg.Connection]]:
    with (
        fresh_database(postgres, migrated_template) as url,
        psycopg.connect(url, autocommit=True) as db,
        psycopg.connect(url) as other,
    ):
        yield db, other


class History:
    """One job, what may be done to it, and what must hold after each step."""

    def __init__(self, db: psycopg.Connection, other: psycopg.Connection) -> None:
        self.db, self.other = db, other
        self.settings = Settings()
        self.spec = JobSpec(source="hosts", hosts=[f"h{next(NUMBERS)}.test"])
        made = jobs.start(self.db, self.spec, self.settings)
        assert isinstance(made, Job)
        self.id, self.cutoff, self.status = made.id, made.cutoff, made.status

    def do(self, kind: str, what: Any) -> None:
        FIRED[kind] += 1
        if kind == "operator":
            with suppress(IllegalTransition):
                if what == "start":
                    jobs.start(self.db, self.spec, self.settings)
                else:
                    getattr(jobs, what)(self.db, self.id)
        elif kind == "system":
            self.db.execute(SQL[what], SYSTEM[what] | {"id": self.id})
        elif kind == "stray":
            self.stray(what)
        elif kind == "crash":
            self.other.execute(SQL[what], SYSTEM[what] | {"id": self.id})
            self.other.rollback()
        else:
            self.shift(what)

    def stray(self, to: JobStatus) -> None:
        """An update that asks nobody, with times of its own: done where the table allows it, else refused by the database."""
        resumes = "now()" if to in WAITING else "null"
        statement = (
            f"update sluice.backfill_job set status = %s, next_retry_at = {resumes}, created_at = 'epoch',"
            " started_at = 'infinity', completed_at = '-infinity' where id = %s"
        )
        if to == self.status or to in TRANSITIONS[self.status]:
            self.db.execute(statement.encode(), (to, self.id))
            return
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            self.db.execute(statement.encode(), (to, self.id))
        assert refused.value.diag.constraint_name == "backfill_job_transition"
        FIRED["refused"] += 1

    def shift(self, seconds: int) -> None:
        """The clock jumps: to the rows it looks as if they had been written by another clock."""
        moved = ", ".join(f"{name} = {name} + %(by)s" for name in ("created_at", "started_at", "completed_at"))
        # without the trigger, which writes the times
        self.other.execute("set local session_replication_role = replica")
        self.other.execute(
            f"update sluice.backfill_job set {moved} where id = %(id)s".encode(),
            {"by": f"{seconds} seconds", "id": self.id},
        )
        self.other.commit()

    def check(self, kind: str, what: Any) -> None:
        job = jobs.get(self.db, self.id)
        assert job.status == self.status or job.status in TRANSITIONS[self.status], (
            f"{self.status} → {job.status} by {what}"
        )
        assert kind not in ("crash", "clock") or job.status == self.status
        assert (job.completed_at is not None) == (job.status in FINAL)
        assert job.completed_at is None or job.started_at is None or job.completed_at >= job.started_at
        assert (job.resume_at is not None) == (job.status in WAITING)
        assert job.status != "running" or job.started_at is not None
        assert job.cutoff == self.cutoff
        if kind == "operator" and self.status in FINAL and job.status == "retry":
            assert (job.retry_count, job.error) == (0, None)
        self.status = job.status


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(step, min_size=20, max_size=40))
def test_no_history_violates_a_constraint(
    sessions: tuple[psycopg.Connection, psycopg.Connection], history: list[tuple[str, Any]]
) -> None:
    """T1, T2, T3, R4: no statement of ours is ever refused, every stray one that is illegal always is."""
    one = History(*sessions)
    for kind, what in history:
        one.do(kind, what)
        one.check(kind, what)


def test_all_kinds_of_steps_were_taken() -> None:
    assert set(FIRED) == {"operator", "system", "stray", "crash", "clock", "refused"}
    assert min(FIRED.values()) > 50
