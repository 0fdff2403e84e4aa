"""Routes of backfill jobs."""

from collections.abc import Callable
from typing import Annotated, Any

import psycopg
from fastapi import Path

from control import jobs
from control.api.context import Context
from control.api.errors import Conflict, Invalid, NotFound
from control.api.models import JobPage
from control.api.paging import read_cursor, write_cursor
from control.api.router import MAX_ID, Ctx, Cursor, Limit, Router, documented
from schemas.job_spec import Job, JobSpec, JobStatus, Plan

ROUTER = Router()
JobId = Annotated[int, Path(ge=1, le=MAX_ID)]


@ROUTER.post("", responses=documented(409, 413, 415))
def start_job(context: Ctx, body: JobSpec) -> Job | Plan:
    """Start a job, or resume the one with the same source. With `dry_run`, return what would be done."""
    with context.db() as db:
        try:
            return jobs.start(db, body, context.settings)
        except jobs.SpecInvalid as err:
            raise Invalid(str(err)) from err
        except jobs.IllegalTransition as err:
            raise Conflict(str(err), "see the job's status") from err


@ROUTER.get("")
def list_jobs(context: Ctx, status: JobStatus | None = None, limit: Limit = 100, cursor: Cursor = "") -> JobPage:
    """Jobs in order of their ids."""
    after = read_cursor(cursor, int) or [0]
    with context.db() as db:
        found = jobs.list_jobs(db, status=status, after=max(0, after[0]), limit=limit + 1)
    items = found[:limit]
    return JobPage(items=items, cursor=write_cursor([items[-1].id]) if len(found) > limit else None)


@ROUTER.get("/{id}", responses=documented(404))
def get_job(context: Ctx, id: JobId) -> Job:
    """One job."""
    return _moved(context, id, jobs.get)


@ROUTER.post("/{id}/pause", responses=documented(404, 409))
def pause_job(context: Ctx, id: JobId) -> Job:
    """Stop listing and queueing until the job is resumed."""
    return _moved(context, id, jobs.pause)


@ROUTER.post("/{id}/resume", responses=documented(404, 409))
def resume_job(context: Ctx, id: JobId) -> Job:
    """Resume a paused job at its checkpoint."""
    return _moved(context, id, jobs.resume)


@ROUTER.post("/{id}/cancel", responses=documented(404, 409))
def cancel_job(context: Ctx, id: JobId) -> Job:
    """End the job. Repos that it has queued stay queued."""
    return _moved(context, id, jobs.cancel)


@ROUTER.post("/{id}/retry", responses=documented(404, 409))
def retry_job(context: Ctx, id: JobId) -> Job:
    """Open a failed or cancelled job again at its checkpoint."""
    return _moved(context, id, jobs.retry)


def _moved(context: Context, job: int, move: Callable[[psycopg.Connection[Any], int], Job]) -> Job:
    with context.db() as db:
        try:
            return move(db, job)
        except jobs.JobNotFound as err:
            raise NotFound(f"there is no job {job}", "GET /api/v1/jobs lists them") from err
        except jobs.IllegalTransition as err:
            raise Conflict(str(err), "see the job's status") from err
