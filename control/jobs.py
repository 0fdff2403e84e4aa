"""Backfill jobs, for the command line and the HTTP API: start, get, list, pause, resume, cancel, retry.

Every function takes an autocommit connection. An operator's command is one guarded update: a job whose status does not allow it is not
changed (`IllegalTransition`), and repeating a command has no further effect. `flows.list_repos.flow` carries out the jobs that
list, `control.tasks.job_steps` those with lists of DIDs; both read the rows every second or two.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from connectors.http.client import HostRefused, check_url
from connectors.postgres.connection import own_transaction
from connectors.postgres.sharded_queue import repo_queue
from schemas.errors import OperatorError
from schemas.job_spec import Job, JobCounts, JobCutoff, JobSpec, JobStatus, Plan
from schemas.settings import Settings
from schemas.sql import queries
from steps.job_states import FINAL, JobIdentity, JobSource, SpecRefused, eta, identify, sources_of, spec_of

Connection = psycopg.Connection[Any]
SQL = queries("jobs")
SHOWN = 20
LARGEST_ID = 2**63 - 1


class JobNotFound(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(f"there is no job {number}; `sluice backfill list` shows them")


class IllegalTransition(Exception):
    """The status of the job does not allow the command."""

    def __init__(self, number: int, status: JobStatus, asked: str, remedy: str) -> None:
        super().__init__(f"job {number} is {status}: it cannot be {asked}; {remedy}")
        self.status = status


class SpecInvalid(OperatorError):
    """An invalid specification of a job. The message names the part and the remedy."""


def start(db: Connection, spec: JobSpec, settings: Settings) -> Job | Plan:
    """Create a job, or resume the job with the same source (R2). With `dry_run`, return a Plan and change nothing.

    Raises SpecInvalid.
    """
    wanted = _identified(spec, settings)
    if spec.again:
        wanted = replace(wanted, name=_name_of_next(db, wanted.name))
    if spec.dry_run:
        return _plan(db, spec, wanted, settings)
    values = {
        "name": wanted.name,
        **asdict(wanted.source),
        "total": wanted.total,
        "batch_size": spec.batch_size,
        "priority": spec.priority,
    }
    with own_transaction(db):
        made = _one(db, "create", values)
        if made is not None:
            if wanted.dids:
                _run(db, "add_dids", {"job": made["id"], "dids": list(wanted.dids)})
            return get(db, made["id"])
    known = _one(db, "by_name", values)
    assert known is not None  # noqa: S101  # jobs are never deleted
    _run(db, "adjust", values | {"id": known["id"]})
    status = JobStatus(known["status"])
    if status in (JobStatus.FAILED, JobStatus.CANCELLED):
        return retry(db, known["id"])
    return get(db, known["id"]) if status is JobStatus.COMPLETED else resume(db, known["id"])


def get(db: Connection, number: int) -> Job:
    """One job. Raises JobNotFound."""
    row = _one(db, "get", {"id": number}) if 0 < number <= LARGEST_ID else None
    if row is None:
        raise JobNotFound(number)
    return _job(row)


def list_jobs(
    db: Connection, *, status: JobStatus | None = None, after: int | None = None, limit: int = 100
) -> list[Job]:
    """Jobs with an id above `after`, in order of their ids."""
    values = {"status": status, "after": min(after or 0, LARGEST_ID), "limit": limit}
    return [_job(row) for row in _rows(db, "page", values)]


def pause(db: Connection, number: int) -> Job:
    """Stop listing and queueing until `resume`. Queued repos are still fetched. Raises JobNotFound, IllegalTransition."""
    return _move(db, number, JobStatus.PAUSED, "paused", "only an unfinished job can be")


def resume(db: Connection, number: int) -> Job:
    """Continue at the checkpoint, even before the reset time of a quota. Raises JobNotFound, IllegalTransition."""
    if _one(db, "resume", {"id": number}) is None:
        job = get(db, number)
        if job.status in FINAL:
            remedy = (
                "it has ended" if job.status is JobStatus.COMPLETED else f"`sluice backfill retry {number}` restarts it"
            )
            raise IllegalTransition(number, job.status, "resumed", remedy)
    return get(db, number)


def cancel(db: Connection, number: int) -> Job:
    """End the job. Queued repos are still fetched. Raises JobNotFound, IllegalTransition."""
    return _move(db, number, JobStatus.CANCELLED, "cancelled", "it has ended")


def retry(db: Connection, number: int) -> Job:
    """Restart a failed or cancelled job at its checkpoint. Raises JobNotFound, IllegalTransition."""
    return _move(db, number, JobStatus.RETRY, "retried", "only failed and cancelled jobs can be")


def _move(db: Connection, number: int, to: JobStatus, asked: str, remedy: str) -> Job:
    sources = sources_of(to)
    if to is JobStatus.RETRY:  # a running job gets this status only by its own failure
        sources = [source for source in sources if source in FINAL]
    if 0 < number <= LARGEST_ID and _one(db, "move", {"id": number, "to": to.value, "from": sources}) is not None:
        return get(db, number)
    job = get(db, number)
    if job.status is not to:
        raise IllegalTransition(number, job.status, asked, remedy)
    return job


def known_of(settings: Settings, dids: Sequence[str]) -> tuple[int, int]:
    """How many of these repos are known, and how many in sync already."""
    queue = repo_queue(settings)
    try:
        rows = queue.read(SQL["plan_dids"], {"dids": list(dids)})
    finally:
        queue.close()
    return sum(known for known, _ in rows), sum(synced for _, synced in rows)


def _name_of_next(db: Connection, name: str) -> str:
    """The name for fetching this list again: that of its unfinished job, or a new one."""
    row = _one(db, "newest_again", {"name": name})
    if row is None:
        return name
    return f"{name} {row['number'] + 1}" if row["status"] == JobStatus.COMPLETED else str(row["name"])


def _identified(spec: JobSpec, settings: Settings) -> JobIdentity:
    try:
        wanted = identify(spec, settings.relays[0] if settings.relays else None)
    except SpecRefused as err:
        raise SpecInvalid(str(err)) from err
    for url in [wanted.source.relay, *(wanted.source.hosts or ())]:
        try:
            if url is not None:
                check_url(url, allow_private=settings.allow_private_hosts)
        except HostRefused as err:
            raise SpecInvalid(f"{url}: {err}; SLUICE_ALLOW_PRIVATE_HOSTS=true allows private addresses") from err
    return wanted


def _plan(db: Connection, spec: JobSpec, wanted: JobIdentity, settings: Settings) -> Plan:
    existing = _one(db, "by_name", {"name": wanted.name})
    status = None if existing is None else JobStatus(existing["status"])
    would = "create" if status is None else "nothing" if status is JobStatus.COMPLETED else "resume"
    known = synced = None
    if wanted.dids:
        known, synced = known_of(settings, wanted.dids)
    places = [wanted.source.relay] if wanted.source.relay else list(wanted.source.hosts or ())
    return Plan(
        name=wanted.name,
        source=spec.source,
        would=would,  # type: ignore[arg-type]  # one of its three values
        job=None if existing is None else existing["id"],
        status=status,
        total=wanted.total,
        new=None if known is None else len(wanted.dids) - known,
        known=known,
        in_sync=synced,
        items=list(wanted.dids[:SHOWN]) or places[:SHOWN],
    )


def _job(row: DictRow) -> Job:
    spec = spec_of(JobSource(**{name: row[name] for name in _SOURCE}), row["batch_size"], row["priority"])
    done = row["checkpoint"].get("done") is True
    over = JobStatus(row["status"]) in FINAL
    left = eta(rate=row["rate"], pending=row["pending"], listed=row["listed"], total=_listed_total(row), done=done)
    return Job(
        source=spec.source,
        spec=spec,
        cutoff=JobCutoff(time=row["cutoff"], relay_seqs=row["cutoff_seqs"]),
        counts=JobCounts(
            listed=row["listed"],
            new=row["queued"],
            known=row["duplicates"],
            in_sync=row["in_sync"],
            **{name: row[name] for name in ("synced", "failed", "unavailable", "pending")},
        ),
        rate_per_second=None if over else row["rate"],
        eta_seconds=None if over else left,
        resume_at=row["next_retry_at"],
        **{name: row[name] for name in _AS_THEY_ARE},
    )


_SOURCE = tuple(field.name for field in fields(JobSource))
_AS_THEY_ARE = (
    *("id", "name", "status", "checkpoint", "total", "retry_count", "error"),
    *("created_at", "started_at", "completed_at", "updated_at"),
)


def _listed_total(row: DictRow) -> int | None:
    """How many repos the job will list; None unless it has a list of DIDs."""
    return row["total"] if row["kind"] == "dids" else None


def _rows(db: Connection, name: str, values: dict[str, Any]) -> list[DictRow]:
    with db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(SQL[name], values).fetchall()


def _one(db: Connection, name: str, values: dict[str, Any]) -> DictRow | None:
    with db.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(SQL[name], values).fetchone()


def _run(db: Connection, name: str, values: dict[str, Any]) -> None:
    with db.cursor(row_factory=dict_row) as cursor:
        cursor.execute(SQL[name], values)
