"""Commands about what the mirror holds: audit, replay, dead letters, skipped ranges, positions."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from control.cli_base import AsJson, DataDir, Limit, answerable, located
from control.errors import OperatorError

cursors_app = typer.Typer(help="Where each upstream and each consumer group is read up to.", no_args_is_help=True)
dead_letters_app = typer.Typer(help="What could not be processed.", no_args_is_help=True)
skipped_app = typer.Typer(help="Listing ranges that were stepped over.", no_args_is_help=True)

Place = Annotated[str, typer.Argument(help="PARTITION:OFFSET of a dead letter.")]
Places = Annotated[list[str] | None, typer.Argument(help="PARTITION:OFFSET of dead letters.")]
Reason = Annotated[str | None, typer.Option(help="Open ones with this reason.")]
Origin = Annotated[str | None, typer.Option(help="Open ones from this topic or flow.")]
Workers = Annotated[int, typer.Option(min=1, max=256, help="Processes that read and check.")]


def commands(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("audit")(audit)
    app.command("replay")(replay)
    for name, group in (("cursors", cursors_app), ("dead-letters", dead_letters_app), ("skipped", skipped_app)):
        app.add_typer(group, name=name)


@answerable
def audit(
    *,
    dids: Annotated[list[str] | None, typer.Argument(help="DIDs to audit.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every repo in sync; goes on where it was stopped.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="So many repos, chosen at random.")] = 0,
    against_pds: Annotated[bool, typer.Option("--against-pds", help="Compare with the PDSes' heads too.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch what differs again.")] = False,
    roots_only: Annotated[bool, typer.Option("--roots-only", help="Do not hash the records again.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew instead of going on.")] = False,
    workers: Workers = 1,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Prove the rows: rebuild every repo's tree, hash every record, check every signature. Exit code 1 if one differs."""
    from control.audit import Options, Scope, audit  # noqa: PLC0415 - loads what `sluice settings` has no need of
    from control.run import check_database  # noqa: PLC0415 - as above

    if (bool(dids), every, bool(sample)).count(True) != 1:
        raise OperatorError("name the DIDs to audit, or give --all, or --sample N")
    settings = located(data_dir, "database")
    check_database(settings)
    scope = Scope(tuple(dids) if dids else None, sample or None)
    options = Options(bodies=not roots_only, against_pds=against_pds, repair=repair, restart=restart, workers=workers)
    report = audit(settings, scope, options, _progress)
    typer.echo(json.dumps(report.as_json()) if as_json else report.as_text())
    raise typer.Exit(0 if report.good else 1)


@answerable
def replay(
    *,
    topic: Annotated[str, typer.Argument(help="Topic to replay; none with --all.")] = "",
    from_offset: Annotated[
        list[str] | None, typer.Option(help="PARTITION:OFFSET; only partitions that are named. Repeatable.")
    ] = None,
    from_time: Annotated[str, typer.Option(help="Begin at the first message of this time (ISO 8601).")] = "",
    to: Annotated[list[str] | None, typer.Option(help="End before PARTITION:OFFSET, or before a time.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The whole log into another database.")] = False,
    into: Annotated[str, typer.Option(help="PostgreSQL URL of an empty database, with --all.")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Put messages through the same guards again, beside the running index; or make a database from the log alone."""
    from control import rebuild, replay  # noqa: PLC0415 - as above
    from control.run import check_database  # noqa: PLC0415 - as above

    if every:
        if topic or from_offset or from_time or to or not into:
            raise OperatorError("--all replays the whole log into another database: give --into URL, and nothing else")
        settings = located(data_dir, "bootstrap")
        check_database(settings.model_copy(update={"database": into}))
        done = rebuild.rebuild(settings, into, _every_second("messages replayed"))
        typer.echo(json.dumps(asdict(done)) if as_json else rebuild.as_text(done))
        raise typer.Exit(1 if done.unfinished or done.refused else 0)
    if not topic or into:
        raise OperatorError("name the topic to replay, or give --all --into URL")
    settings = located(data_dir, "bootstrap", "database")
    check_database(settings)
    starts, ends = replay.asked(settings, topic, from_offset or [], from_time, to or [])
    replayed = replay.replay(settings, topic, starts, ends, _every_second("messages replayed"))
    typer.echo(json.dumps(asdict(replayed)) if as_json else replay.as_text(replayed))


@cursors_app.command("list")
@answerable
def cursors_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the durable position of every upstream."""
    _table("cursors", data_dir, as_json, {})


@dead_letters_app.command("list")
@answerable
def dead_letters_list(
    state: Annotated[str, typer.Option(help="open, retried, dismissed or all")] = "open",
    limit: Limit = 100,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest first."""
    if state not in ("open", "retried", "dismissed", "all"):
        raise OperatorError(f"--state {state}: choose open, retried, dismissed or all")
    _table("dead_letters", data_dir, as_json, {"state": state, "limit": limit})


@dead_letters_app.command("show")
@answerable
def dead_letters_show(place: Place, data_dir: DataDir = None) -> None:
    """Show a dead letter with what its reason means and its payload, as JSON."""
    with _letters(data_dir) as (letters, places):
        typer.echo(json.dumps(letters.show(places([place])[0]), default=str, indent=2))


@dead_letters_app.command("retry")
@answerable
def dead_letters_retry(
    *,
    chosen: Places = None,
    every: Annotated[bool, typer.Option("--all", help="All open ones.")] = False,
    reason: Reason = None,
    topic: Origin = None,
    data_dir: DataDir = None,
) -> None:
    """Run the code of today over what could not be processed. Exit code 1 if something stays open."""
    with _letters(data_dir) as (letters, places):
        left = 0
        for place in _chosen(letters, places, chosen, every, reason, topic):
            retried = letters.retry(place)
            left += retried.state == "open"
            typer.echo(f"{place[0]}:{place[1]} {retried.state}{': ' + retried.why if retried.why else ''}")
    raise typer.Exit(1 if left else 0)


@dead_letters_app.command("dismiss")
@answerable
def dead_letters_dismiss(
    *,
    chosen: Places = None,
    every: Annotated[bool, typer.Option("--all", help="All open ones.")] = False,
    reason: Reason = None,
    topic: Origin = None,
    data_dir: DataDir = None,
) -> None:
    """Put dead letters aside: looked at, and nothing to be done. They stay in the topic."""
    with _letters(data_dir) as (letters, places):
        done = sum(letters.dismiss(place) for place in _chosen(letters, places, chosen, every, reason, topic))
    typer.echo(f"dismissed {done}")


@skipped_app.command("list")
@answerable
def skipped_list(limit: Limit = 100, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List skipped listing ranges, the open ones first."""
    _table("skipped", data_dir, as_json, {"limit": limit})


@skipped_app.command("fill")
@answerable
def skipped_fill(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids of ranges; all open ones without.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make skipped ranges due now: list-repos reads them again, and lists the PDSes where the relay stays mute."""
    from control.run import check_database  # noqa: PLC0415 - as above
    from control.skipped import fill_now  # noqa: PLC0415 - as above

    settings = located(data_dir, "database")
    check_database(settings)
    due = fill_now(settings, ids)
    typer.echo(f"{len(due)} ranges are due now")
    for missing in sorted(set(ids or []) - set(due)):
        typer.echo(f"{missing} is not open, or not known", err=True)
    raise typer.Exit(1 if ids and not due else 0)


@contextmanager
def _letters(data_dir: Path | None) -> Iterator[tuple[Any, Any]]:
    from control.dead_letters import DeadLetters, places  # noqa: PLC0415 - as above
    from control.run import check_database  # noqa: PLC0415 - as above

    settings = located(data_dir, "bootstrap", "database")
    check_database(settings)
    letters = DeadLetters(settings)
    try:
        yield letters, places
    finally:
        letters.close()


def _chosen(letters: Any, places: Any, chosen: list[str] | None, every: bool, *filters: str | None) -> Iterable[Any]:
    """Places that the command line names, or those of all open letters that fit."""
    if bool(chosen) == (every or any(filters)):
        raise OperatorError("name dead letters as PARTITION:OFFSET, or give --all, --reason or --topic")
    found: Iterable[Any] = places(chosen) if chosen else letters.open_places(*filters)
    return found


def _every_second(what: str) -> Callable[[int], None]:
    """Progress on standard error, at most once a second."""
    told = time.monotonic()

    def tell(count: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 1.0:
            told = time.monotonic()
            _progress(f"{count} {what}")

    return tell


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _table(query: str, data_dir: Path | None, as_json: bool, values: dict[str, object]) -> None:
    from control.status_page import rows, table  # noqa: PLC0415 - as above

    found = rows(located(data_dir, "database"), query, values)
    typer.echo(json.dumps(found) if as_json else table(found))
