"""Commands about the database as a whole: `sluice backup`, `sluice restore` and `sluice psql`."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.base import AsJson, DataDir, answerable, load, located, with_database
from schemas.errors import OperatorError

if TYPE_CHECKING:
    from schemas.settings import Settings

Database = Annotated[
    str | None, typer.Option(help="PostgreSQL URL; the default is the database of `sluice up`. [SLUICE_DATABASE]")
]


def commands(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("backup")(backup)
    app.command("restore")(restore)
    app.command("psql", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(psql)


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


@answerable
def psql(context: typer.Context, data_dir: DataDir = None) -> None:
    """Open the mirror's database with psql; other arguments are psql's: `sluice psql -c "select * from sluice.repo"`."""
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - as above
    from psycopg.pq import Conninfo  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    client = _client(settings)
    # by libpq's variables: the password is in no list of processes, and psql's own options still choose another database
    given = conninfo_to_dict(settings.database)
    variables = {
        option.envvar.decode(): str(given[name])
        for option in Conninfo.get_defaults()
        if option.envvar and (name := option.keyword.decode()) in given
    }
    os.execve(client, [client, *context.args], os.environ | variables)  # noqa: S606 - psql becomes this process


def _client(settings: "Settings") -> str:
    """The embedded database's own psql, or for another database the one on the PATH. Raises OperatorError."""
    from control.process_status import registered  # noqa: PLC0415 - as above
    from local.embedded.embedded_database import find_binaries  # noqa: PLC0415 - as above

    running = registered(settings.data_dir)
    if running and running.database == settings.database and any(one.kind == "postgres" for one in running.processes):
        return str(find_binaries() / "psql")
    found = shutil.which("psql")
    if found is None:
        raise OperatorError("there is no `psql` on the PATH; install PostgreSQL's client, or use another one")
    return found
