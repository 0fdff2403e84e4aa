"""`sluice storms`: reasons for which too many repos would be fetched again at once."""

import json
from typing import Annotated

import typer

from cli.base import AsJson, DataDir, answerable, located
from schemas.errors import OperatorError

storms_app = typer.Typer(help="Refetches of many repos for one reason, held until you decide.", no_args_is_help=True)


@storms_app.command("list")
@answerable
def show(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show which reasons are held, how many repos wait for each, and which were let through."""
    from cli.status_text import table  # noqa: PLC0415 - as above
    from connectors.postgres.connection import check_database  # noqa: PLC0415 - loads what `sluice settings` has no need of
    from control.tasks.storms import listed  # noqa: PLC0415 - as above

    settings = located(data_dir, "database")
    check_database(settings)
    rows = [{name: value if value is None else str(value) for name, value in row.items()} for row in listed(settings)]
    typer.echo(json.dumps(rows) if as_json else table(rows))


@storms_app.command("release")
@answerable
def let_through(
    reason: Annotated[str, typer.Argument(help="The reason, as `sluice storms list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Let a held reason through for a day: its repos are fetched again, as fast as everything else allows."""
    from connectors.postgres.connection import check_database  # noqa: PLC0415 - loads what `sluice settings` has no need of
    from control.tasks.storms import RELEASE_HOURS, release  # noqa: PLC0415 - as above

    settings = located(data_dir, "database")
    check_database(settings)
    if not release(settings, reason):
        raise OperatorError(f"{reason!r} is not held; `sluice storms list` shows what is")
    typer.echo(f"{reason}: let through for {RELEASE_HOURS} hours")
