"""`sluice hosts`: PDSes that are paused or failing, and ending a pause."""

import json
from typing import Annotated

import typer

from cli.base import AsJson, DataDir, Limit, answerable, located

hosts_app = typer.Typer(help="PDSes: pauses, limits and failures.", no_args_is_help=True)


@hosts_app.command("list")
@answerable
def hosts_list(limit: Limit = 100, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List hosts that are paused, limited by their own headers, or failing."""
    from cli.status_text import rows, table  # noqa: PLC0415 - loads what `sluice settings` has no need of

    found = rows(located(data_dir, "database"), "held_back_hosts", {"limit": limit})
    typer.echo(json.dumps(found) if as_json else table(found))


@hosts_app.command("clear")
@answerable
def hosts_clear(
    hosts: Annotated[list[str], typer.Argument(help="Hosts: https://pds.example.com, or pds.example.com.")],
    data_dir: DataDir = None,
) -> None:
    """End pauses and forget limits: workers ask these hosts again within seconds."""
    from connectors.postgres.connection import check_database  # noqa: PLC0415 - as above
    from control.hosts import clear  # noqa: PLC0415 - as above

    settings = located(data_dir, "database")
    check_database(settings)
    done = clear(settings, hosts)
    typer.echo(f"{len(done.hosts)} hosts may be asked; {done.repos} repos are due now")
