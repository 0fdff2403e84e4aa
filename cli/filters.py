"""`sluice filters`: which collections, of which repos."""

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from cli.base import AsJson, DataDir, answerable, located, unreadable
from connectors.postgres.connection import connect
from schemas.errors import OperatorError
from schemas.filter_spec import FilterSpec, FilterState
from schemas.patterns import mistake

COUNTED = 100_000  # repos outside are counted so far

filters_app = typer.Typer(help="What of the network is mirrored; changed at run time.", no_args_is_help=True)


@filters_app.command("show")
@answerable
def show(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the filter, and whether all repos follow it yet."""
    _told(_with_database(data_dir, None), as_json=as_json)


@filters_app.command("set")
@answerable
def change(
    *,
    collection: Annotated[
        list[str] | None, typer.Option(help="NSID, NSID.* or *; may be repeated. Everything without.")
    ] = None,
    did: Annotated[list[str] | None, typer.Option(help="Only these repos; may be repeated.")] = None,
    did_file: Annotated[Path | None, typer.Option(help="Only these repos: one DID a line.")] = None,
    signal: Annotated[str | None, typer.Option(help="Only repos with records of this collection.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Set the filter as a whole: what is not named is not limited. Rows outside stay until `filters prune`."""
    dids = list(did or [])
    if did_file is not None:
        try:
            dids += [line.strip() for line in did_file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as err:
            raise OperatorError(
                f"--did-file {did_file}: {unreadable(err)}; give a text file with one DID a line"
            ) from err
    if dids and signal:
        raise OperatorError("--did and --signal exclude each other")
    try:
        spec = FilterSpec(
            collections=collection or ["*"],
            boundary="dids" if dids else "collection" if signal else "all",
            dids=dids,
            signal=signal,
        )
    except ValidationError as err:
        where, what = mistake(err)
        option = {"collections": "--collection", "dids": "--did", "signal": "--signal"}.get(
            where[0] if where else "", ""
        )
        given = repr(str(err.errors()[0]["input"])[:100])
        raise OperatorError(f"{option} {given}: {what}" if option else what) from err
    _told(_with_database(data_dir, spec), as_json=as_json)


@filters_app.command("prune")
@answerable
def prune(data_dir: DataDir = None) -> None:
    """Remove the rows that are outside the filter; control does it in small steps."""

    from connectors.postgres.connection import check_database  # noqa: PLC0415 - as above
    from control import filters  # noqa: PLC0415 - as above

    settings = located(data_dir, "database")
    check_database(settings)
    with connect(settings.database, "sluice filters") as db:
        filters.prune(db)
    typer.echo("rows outside are being removed; `sluice filters show` says when it is done")


def _with_database(data_dir: Path | None, spec: FilterSpec | None) -> FilterState:

    from connectors.postgres.connection import check_database  # noqa: PLC0415 - as above
    from control import filters  # noqa: PLC0415 - as above

    settings = located(data_dir, "database")
    check_database(settings)
    with connect(settings.database, "sluice filters") as db:
        return filters.show(db) if spec is None else filters.change(db, spec)


def _told(state: FilterState, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(state.model_dump(mode="json")))
        return
    of = {"all": "all", "dids": f"{state.dids} named DIDs", "collection": f"those with records of {state.signal}"}
    at = "being carried out" if state.walking else "carried out"
    rows = "being removed" if state.pruning else "none" if state.clean else "there may be some; `sluice filters prune`"
    typer.echo(f"collections   {' '.join(state.collections)}")
    typer.echo(f"repos         {of[state.boundary]}")
    if state.outside:
        typer.echo(f"outside       {state.outside}{' or more' if state.outside >= COUNTED else ''} known repos")
    typer.echo(f"version       {state.version}, {at}")
    typer.echo(f"rows outside  {rows}")
