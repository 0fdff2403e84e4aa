"""`sluice backup` and `sluice restore`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.base import AsJson, DataDir, answerable, located
from schemas.settings import load

Database = Annotated[
    str | None, typer.Option(help="PostgreSQL URL; the default is the database of `sluice up`. [SLUICE_DATABASE]")
]


def commands(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("backup")(backup)
    app.command("restore")(restore)


@answerable
def backup(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file if it exists.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write the database to a file while the mirror runs, together with the offsets in the log that match its rows."""
    from ops.backup import backup  # noqa: PLC0415 - loads what `sluice settings` has no need of

    done = backup(located(data_dir, "database"), file, replace=replace)
    typer.echo(json.dumps(asdict(done)) if as_json else f"wrote {done.file}: {done.bytes} bytes in {done.seconds} s")


@answerable
def restore(
    file: Annotated[Path, typer.Argument(help="File that `sluice backup` wrote.")],
    *,
    database: Database = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the database of the data folder when the new one is complete.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty database, or into that of a stopped `sluice up`. The index then continues from its offsets."""
    from ops.backup import restore  # noqa: PLC0415 - as above

    done = restore(load(data_dir=data_dir, database=database), file, replace=replace)
    text = f"restored {done.file} in {done.seconds} s; the index reads the log first, then repos are fetched again"
    typer.echo(json.dumps(asdict(done)) if as_json else text)
