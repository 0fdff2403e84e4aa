"""Commands about what the mirror holds: audit, replay, dead letters, skipped ranges, positions."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from control.cli_base import AsJson, DataDir, Limit, answerable, located
from control.errors import OperatorError

cursors_app = typer.Typer(help="Where each upstream and each consumer group is read up to.", no_args_is_help=True)
dead_letters_app = typer.Typer(help="What could not be processed.", no_args_is_help=True)
skipped_app = typer.Typer(help="Listing ranges that were stepped over.", no_args_is_help=True)

Workers = Annotated[int, typer.Option(min=1, max=256, help="Processes that read and check.")]


def commands(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("audit")(audit)
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


@skipped_app.command("list")
@answerable
def skipped_list(limit: Limit = 100, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List skipped listing ranges, the open ones first."""
    _table("skipped", data_dir, as_json, {"limit": limit})


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _table(query: str, data_dir: Path | None, as_json: bool, values: dict[str, object]) -> None:
    from control.status_page import rows, table  # noqa: PLC0415 - as above

    found = rows(located(data_dir, "database"), query, values)
    typer.echo(json.dumps(found) if as_json else table(found))
