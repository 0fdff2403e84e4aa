"""Handlers of backfill jobs."""

from collections.abc import Callable
from typing import Any

import psycopg
from pydantic import RootModel

from control import jobs
from control.api import models
from control.api.context import Context
from control.api.errors import Conflict, Invalid, NotFound
from control.api.pages import read_cursor, write_cursor
from control.api.route import Nothing
from schemas.job_spec import Job, JobSpec, JobStatus, Plan


class JobOrPlan(RootModel[Job | Plan]):
    """The job; with `dry_run` what would be done."""


def start(context: Context, _asked: Nothing, body: JobSpec) -> JobOrPlan:
    """A new job, or the one with the same source resumed where it stands."""
    with context.db() as db:
        try:
            return JobOrPlan(jobs.start(db, body, context.settings))
        except jobs.SpecInvalid as err:
            raise Invalid(str(err)) from err
        except jobs.IllegalTransition as err:
            raise Conflict(str(err), "see the job's status") from err


def job(context: Context, asked: models.Id, _body: None) -> Job:
    """One job."""
    return _moved(context, asked, jobs.get)


def page(context: Context, asked: models.JobPage, _body: None) -> models.Jobs:
    """A page of jobs in order of their ids."""
    after = read_cursor(asked.cursor, int) or [0]
    status = None if asked.status is None else JobStatus(asked.status)
    with context.db() as db:
        found = jobs.list_jobs(db, status=status, after=max(0, after[0]), limit=asked.limit + 1)
    items = found[: asked.limit]
    return models.Jobs(items=items, cursor=write_cursor([items[-1].id]) if len(found) > len(items) else None)


def pause(context: Context, asked: models.Id, _body: None) -> Job:
    """Stop listing and queueing until it is resumed."""
    return _moved(context, asked, jobs.pause)


def resume(context: Context, asked: models.Id, _body: None) -> Job:
    """Go on at the checkpoint."""
    return _moved(context, asked, jobs.resume)


def cancel(context: Context, asked: models.Id, _body: None) -> Job:
    """End it where it stands."""
    return _moved(context, asked, jobs.cancel)


def retry(context: Context, asked: models.Id, _body: None) -> Job:
    """Open a failed or cancelled job again at its checkpoint."""
    return _moved(context, asked, jobs.retry)


def _moved(context: Context, asked: models.Id, move: Callable[[psycopg.Connection[Any], int], Job]) -> Job:
    with context.db() as db:
        try:
            return move(db, asked.id)
        except jobs.JobNotFound as err:
            raise NotFound(f"there is no job {asked.id}", "GET /api/backfill lists them") from err
        except jobs.IllegalTransition as err:
            raise Conflict(str(err), "see the job's status") from err
