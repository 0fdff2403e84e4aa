"""`sluice backfill`: backfill jobs, and retries of failed repos."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.base import AsJson, DataDir, Limit, all_dids, answerable, one_of, unreadable, with_database
from schemas.errors import OperatorError

if TYPE_CHECKING:
    from schemas.job_spec import Job, JobSpec, Plan
    from schemas.settings import Settings

backfill_app = typer.Typer(help="Backfill jobs and failed repos.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(help="Job number, as `sluice backfill list` shows it.")]
Lines = Annotated[Path | None, typer.Option(help="File with one per line; - reads standard input.")]


@backfill_app.command("start")
@answerable
def start(
    *,
    relay: Annotated[
        str | None, typer.Option(help="All repos of this relay. The default is the first of SLUICE_RELAYS.")
    ] = None,
    host: Annotated[list[str] | None, typer.Option(help="All repos of this PDS; repeatable.")] = None,
    hosts_file: Lines = None,
    did: Annotated[list[str] | None, typer.Option(help="This repo; repeatable.")] = None,
    dids_file: Lines = None,
    collection: Annotated[
        str | None, typer.Option(help="Repos with records of this collection, as the relay lists them.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Repos listed or queued in one step.")] = 1000,
    priority: Annotated[int, typer.Option(help="Waiting jobs with a higher priority run first.")] = 0,
    split: Annotated[int, typer.Option(min=0, help="Start one job per this many hosts or DIDs.")] = 0,
    again: Annotated[
        bool, typer.Option("--again", help="With DIDs: also fetch repos that are in sync or failed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; change nothing.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Start a job. The same command again resumes that job at its checkpoint."""
    from control import jobs  # noqa: PLC0415 - loads what `sluice help` has no need of
    from schemas.job_spec import Job  # noqa: PLC0415 - as above
    from steps.job_states import split as cut  # noqa: PLC0415 - as above

    hosts, dids = [*(host or []), *_lines(hosts_file)], [*(did or []), *_lines(dids_file)]
    source = "collection" if collection else "hosts" if hosts else "dids" if dids else "relay"
    if not (hosts or dids) and (hosts_file or dids_file):
        raise OperatorError(f"{hosts_file or dids_file} is empty; write one per line")
    spec = _spec(
        source=source,
        relay=relay,
        hosts=hosts,
        dids=dids,
        collection=collection,
        batch_size=batch_size,
        priority=priority,
        again=again,
        dry_run=dry_run,
    )
    with _database(data_dir) as (db, settings):
        synced = jobs.known_of(settings, spec.dids)[1] if dids and not again else 0
        made = [jobs.start(db, part, settings) for part in (cut(spec, split) if split else [spec])]
    if synced:
        typer.echo(f"already in sync: {synced}; --again fetches them again", err=True)
    if as_json:
        shown = [one.model_dump(mode="json") for one in made]
        typer.echo(json.dumps(shown if split else shown[0]))
    elif len(made) == 1 and isinstance(made[0], Job):
        typer.echo(_page(made[0]))
    else:
        typer.echo(_table([_row(one) if isinstance(one, Job) else _plan(one) for one in made]))


@backfill_app.command("list")
@answerable
def list_(
    status: Annotated[str | None, typer.Option(help="Only jobs with this status, such as running.")] = None,
    after: Annotated[int, typer.Option(help="Only jobs with a higher number.")] = 0,
    limit: Limit = 100,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List jobs."""
    from control import jobs  # noqa: PLC0415 - as above
    from schemas.job_spec import JobStatus  # noqa: PLC0415 - as above

    if status is not None and status not in {*JobStatus}:
        raise OperatorError(f"--status {status[:100]!r}: write one of {', '.join(JobStatus)}")
    with _database(data_dir) as (db, _):
        found = jobs.list_jobs(db, status=JobStatus(status) if status else None, after=after, limit=limit)
    shown = (
        json.dumps([job.model_dump(mode="json") for job in found]) if as_json else _table([_row(job) for job in found])
    )
    typer.echo(shown)


@backfill_app.command("show")
@answerable
def show(job: Number, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show a job: progress, checkpoint, rate, failures, remaining time."""
    _do("get", job, data_dir, as_json=as_json)


@backfill_app.command("pause")
@answerable
def pause(job: Number, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Stop a job within seconds, until `resume`. Queued repos are still fetched."""
    _do("pause", job, data_dir, as_json=as_json)


@backfill_app.command("resume")
@answerable
def resume(job: Number, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Resume a job at its checkpoint, even before the reset time of a quota."""
    _do("resume", job, data_dir, as_json=as_json)


@backfill_app.command("cancel")
@answerable
def cancel(job: Number, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """End a job. Queued repos are still fetched."""
    _do("cancel", job, data_dir, as_json=as_json)


@backfill_app.command("retry")
@answerable
def retry(
    chosen: Annotated[
        list[str] | None, typer.Argument(help="DIDs of failed repos, or numbers of failed or cancelled jobs.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every failed repo.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Retry failed repos, or restart failed and cancelled jobs, and reset their failures."""
    from connectors.postgres.sharded_queue import repo_queue  # noqa: PLC0415 - as above

    one_of("name the DIDs or the jobs to retry, or give --all", DIDs=chosen, all=every)
    numbers = [int(one) for one in chosen or [] if one.isascii() and one.isdigit()]
    dids = [one for one in chosen or [] if not (one.isascii() and one.isdigit())]
    all_dids(dids, also=" and not the number of a job")
    for number in numbers:
        _do("retry", number, data_dir, as_json=False)
    if not (dids or every):
        return
    with _database(data_dir) as (_, settings):
        retried = repo_queue(settings).retry_failed(None if every else dids)
    typer.echo(f"retried {len(retried)}")
    for did in sorted(set(dids) - set(retried)):
        typer.echo(f"{did} is not failed, or unknown", err=True)
    raise typer.Exit(1 if dids and not retried else 0)


def _spec(**fields: Any) -> "JobSpec":
    """What a job covers. Raises OperatorError."""
    from pydantic import ValidationError  # noqa: PLC0415 - as above

    from schemas.job_spec import JobSpec  # noqa: PLC0415 - as above
    from schemas.patterns import mistake  # noqa: PLC0415 - as above

    try:
        return JobSpec.model_validate(fields)
    except ValidationError as err:
        where, what = mistake(err)
        option = "--" + where[0].replace("_", "-") + ": " if where else ""
        raise OperatorError(f"{option}{what}") from err


@contextmanager
def _database(data_dir: Path | None) -> Iterator[tuple[Any, "Settings"]]:
    """A connection, and the settings. Raises OperatorError if the job does not exist or its status does not allow the command."""
    from connectors.postgres.connection import connect  # noqa: PLC0415 - as above
    from control.jobs import IllegalTransition, JobNotFound  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    try:
        with connect(settings.database, "sluice jobs") as db:
            yield db, settings
    except (JobNotFound, IllegalTransition) as err:
        raise OperatorError(str(err)) from err


def _do(what: str, number: int, data_dir: Path | None, *, as_json: bool) -> None:
    from control import jobs  # noqa: PLC0415 - as above

    call: Callable[[Any, int], Job] = getattr(jobs, what)
    with _database(data_dir) as (db, _):
        job = call(db, number)
    typer.echo(job.model_dump_json() if as_json else _page(job))


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise OperatorError(f"{file}: {unreadable(err)}; give a text file with one per line") from err
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _row(job: "Job") -> dict[str, Any]:
    counts = job.counts
    return {
        "job": job.id,
        "status": job.status.value,
        "name": job.name,
        "listed": counts.listed if job.total is None or job.source != "dids" else f"{counts.listed}/{job.total}",
        "new": counts.new,
        "synced": counts.synced,
        "pending": counts.pending,
        "failed": counts.failed,
        "per second": _rate(job),
        "left": _left(job),
    }


def _plan(plan: "Plan") -> dict[str, Any]:
    return {
        "would": plan.would,
        "name": plan.name,
        "job": plan.job,
        "status": plan.status and plan.status.value,
        "total": plan.total,
        "new": plan.new,
        "known": plan.known,
        "synced": plan.in_sync,
        "first": ", ".join(plan.items[:5]),
    }


def _page(job: "Job") -> str:
    """A job as lines of names and values."""
    counts = job.counts
    seqs = "".join(f", {relay} at {seq}" for relay, seq in job.cutoff.relay_seqs.items())
    lines = {
        "job": f"{job.id}  {job.name}",
        "status": job.status.value + (f" until {_time(job.resume_at)}" if job.resume_at else ""),
        "error": job.error,
        "listed": f"{counts.listed}" + (f" (a list of {job.total} {job.source})" if job.total is not None else ""),
        "repos": f"new {counts.new}  known {counts.known}"
        + (f"  already in sync: {counts.in_sync}" if counts.in_sync else ""),
        "of the new": f"synced {counts.synced}  pending {counts.pending}  failed {counts.failed}"
        f"  unavailable {counts.unavailable}",
        "rate": _rate(job) and f"{_rate(job)} repos/s",
        "time left": _left(job),
        "checkpoint": json.dumps(job.checkpoint) if job.checkpoint else None,
        "cutoff": _time(job.cutoff.time) + seqs,
        "retries": str(job.retry_count) if job.retry_count else None,
        "created": _time(job.created_at),
        "started": job.started_at and _time(job.started_at),
        "completed": job.completed_at and _time(job.completed_at),
    }
    return "\n".join(f"{name:<11} {value}" for name, value in lines.items() if value)


def _time(moment: Any) -> str:
    return str(moment.isoformat(sep=" ", timespec="seconds"))


def _rate(job: "Job") -> str:
    return "" if job.rate_per_second is None else f"{job.rate_per_second:.1f}"


def _left(job: "Job") -> str:
    """The remaining time in days, hours and minutes, without zeros."""
    if job.eta_seconds is None:
        return ""
    minutes = round(job.eta_seconds / 60)
    parts = ((minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "< 1 min"


def _table(rows: list[dict[str, Any]]) -> str:
    from cli.status_text import table  # noqa: PLC0415 - as above

    return table(rows)
