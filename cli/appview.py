"""`sluice appview`: rebuild and check the tables of the official AppView."""

import json
import sys
import time
from typing import Annotated

import typer

from cli.base import AsJson, DataDir, answerable, with_database

appview_app = typer.Typer(help="The official AppView's tables (schema bsky).", no_args_is_help=True)
PROGRESS_SECONDS = 2.0


@appview_app.command("rebuild")
@answerable
def rebuild(
    *,
    from_empty: Annotated[
        bool, typer.Option("--from-empty", help="Empty the tables first, which repairs any error in them.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Fill the tables from the mirrored records, while the index runs. Resumes if it was stopped."""
    from appview import rebuild as appview  # noqa: PLC0415 - loads what `sluice settings` has no need of

    settings = with_database(data_dir)
    reported_at = time.monotonic()

    def report(progress: appview.RebuildProgress) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at > PROGRESS_SECONDS:
            sys.stderr.write(f"{progress}\n")
            reported_at = time.monotonic()

    done = appview.rebuild(settings, report, from_empty=from_empty)
    typer.echo(f"{done}{'; continued' if done.resumed else ''}")


@appview_app.command("check")
@answerable
def check(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Recount the counters that are kept incrementally. Exit code 1 if one of them differs."""
    from appview import rebuild as appview  # noqa: PLC0415 - as above
    from connectors.postgres.connection import connect  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    with connect(settings.database, "sluice appview check") as db:
        drift = appview.check(db)
    if as_json:
        typer.echo(json.dumps({"drift": drift.total, **{name: count for name, (count, _) in drift.found.items()}}))
    else:
        for name, (count, one) in drift.found.items():
            typer.echo(f"{name:<24}{count}{f'  {one}' if one else ''}")
        typer.echo(f"drift = {drift.total}")
    raise typer.Exit(1 if drift.total else 0)
