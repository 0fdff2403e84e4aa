"""`sluice hosts` and `sluice storms`: what delays fetching, and how an operator ends it."""

import json
from typing import Annotated

import typer

from cli.base import AsJson, DataDir, Limit, answerable, located, with_database
from schemas.errors import OperatorError

hosts_app = typer.Typer(help="PDSes: pauses, limits and failures.", no_args_is_help=True)
storms_app = typer.Typer(help="Mass refetches for one reason, held until you decide.", no_args_is_help=True)


@hosts_app.command("list")
@answerable
def hosts_list(limit: Limit = 100, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List hosts that are paused, have announced a limit, or fail."""
    from cli.status_text import rows, table  # noqa: PLC0415 - loads what `sluice settings` has no need of

    found = rows(located(data_dir, "database"), "held_back_hosts", {"limit": limit})
    typer.echo(json.dumps(found) if as_json else table(found))


@hosts_app.command("clear")
@answerable
def hosts_clear(
    hosts: Annotated[list[str], typer.Argument(help="Hosts, as https://pds.example.com or pds.example.com.")],
    data_dir: DataDir = None,
) -> None:
    """End pauses and remove limits: workers send requests to these hosts again within seconds."""
    from control.hosts import clear  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    done = clear(settings, hosts)
    typer.echo(f"{len(done.hosts)} hosts are no longer paused; {done.repos} repos are due now")


@storms_app.command("list")
@answerable
def storms_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the reasons that are held, with their waiting repos, and those that were released."""
    from cli.status_text import table  # noqa: PLC0415 - as above
    from control.tasks.storms import listed  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    rows = [{name: value if value is None else str(value) for name, value in row.items()} for row in listed(settings)]
    typer.echo(json.dumps(rows) if as_json else table(rows))


@storms_app.command("release")
@answerable
def storms_release(
    reason: Annotated[str, typer.Argument(help="The reason, as `sluice storms list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Release a held reason for a day: its repos are fetched again at the normal rate."""
    from control.tasks.storms import RELEASE_HOURS, release  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    if not release(settings, reason):
        raise OperatorError(f"{reason!r} is not held; `sluice storms list` shows what is")
    typer.echo(f"{reason}: released for {RELEASE_HOURS} hours")
