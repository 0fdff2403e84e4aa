"""`sluice filters`: which collections of which repos are mirrored."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.base import AsJson, DataDir, answerable, unreadable, with_database
from schemas.errors import OperatorError

if TYPE_CHECKING:
    from schemas.filter_spec import FilterSpec, FilterState
    from steps.gate.filter_edits import FilterEdit

COUNTED = 100_000  # repos outside are counted up to this number

filters_app = typer.Typer(
    help="Which collections and repos are mirrored. Can be changed at run time.", no_args_is_help=True
)


@filters_app.command("show")
@answerable
def show(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the filter, and whether it is applied to all repos."""
    _show(_filter_state(data_dir, None), as_json=as_json)


@filters_app.command("set")
@answerable
def change(
    *,
    collection: Annotated[
        list[str] | None, typer.Option(help="NSID, NSID.* or *; repeatable. The default is everything.")
    ] = None,
    did: Annotated[list[str] | None, typer.Option(help="Only these repos; repeatable.")] = None,
    did_file: Annotated[Path | None, typer.Option(help="Only these repos: a file with one DID on each line.")] = None,
    signal: Annotated[str | None, typer.Option(help="Only repos with records of this collection.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Replace the whole filter: options that are not given do not limit it. Rows outside stay until `filters prune`."""
    from pydantic import ValidationError  # noqa: PLC0415 - loads what `sluice help` has no need of

    from schemas.filter_spec import FilterSpec  # noqa: PLC0415 - as above
    from schemas.patterns import mistake  # noqa: PLC0415 - as above

    dids = list(did or [])
    if did_file is not None:
        try:
            dids += [line.strip() for line in did_file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as err:
            raise OperatorError(
                f"--did-file {did_file}: {unreadable(err)}; give a text file with one DID on each line"
            ) from err
    if dids and signal:
        raise OperatorError("give only one of --did and --signal")
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
    _show(_filter_state(data_dir, spec), as_json=as_json)


Entries = Annotated[list[str], typer.Argument(metavar="DID|COLLECTION…", help="DIDs, and NSIDs, NSID.* or *.")]


@filters_app.command("add")
@answerable
def add(entries: Entries, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Add DIDs or collections to the filter; the rest of it stays."""
    _edit("add", entries, data_dir, as_json=as_json)


@filters_app.command("remove")
@answerable
def remove(entries: Entries, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Remove DIDs or collections from the filter; the rest of it stays. Rows outside stay until `filters prune`."""
    _edit("remove", entries, data_dir, as_json=as_json)


def _edit(verb: Literal["add", "remove"], texts: list[str], data_dir: Path | None, *, as_json: bool) -> None:
    from pydantic import ValidationError  # noqa: PLC0415 - as above

    from schemas.patterns import mistake  # noqa: PLC0415 - as above
    from steps.gate.filter_edits import FilterEdit, FilterEntries  # noqa: PLC0415 - as above

    dids = [text for text in texts if text.startswith("did:")]
    collections = [text for text in texts if text not in set(dids)]
    try:
        entries = FilterEntries(collections=collections, dids=dids)
    except ValidationError as err:
        raise OperatorError(f"{str(err.errors()[0]['input'])[:100]!r}: {mistake(err)[1]}") from err
    _show(_filter_state(data_dir, FilterEdit(verb, entries)), as_json=as_json)


@filters_app.command("prune")
@answerable
def prune(data_dir: DataDir = None) -> None:
    """Remove the rows outside the filter. The control process does it in small steps."""
    from connectors.postgres.connection import connect  # noqa: PLC0415 - as above
    from control import sharded_filter  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    with connect(settings.database, "sluice filters") as db:
        sharded_filter.prune(settings, db)
    typer.echo("rows outside are being removed; `sluice filters show` shows when it is done")


def _filter_state(data_dir: Path | None, wanted: "FilterSpec | FilterEdit | None") -> "FilterState":
    from connectors.postgres.connection import connect  # noqa: PLC0415 - as above
    from control import sharded_filter  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    with connect(settings.database, "sluice filters") as db:
        return sharded_filter.show(settings, db) if wanted is None else sharded_filter.change(settings, db, wanted)


def _show(state: "FilterState", *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(state.model_dump(mode="json")))
        return
    of = {"all": "all", "dids": f"{state.dids} named DIDs", "collection": f"those with records of {state.signal}"}
    applied = "being applied" if state.walking else "applied"
    rows = "being removed" if state.pruning else "none" if state.clean else "there may be some; `sluice filters prune`"
    typer.echo(f"collections   {' '.join(state.collections)}")
    typer.echo(f"repos         {of[state.boundary]}")
    if state.outside:
        typer.echo(f"outside       {state.outside}{' or more' if state.outside >= COUNTED else ''} known repos")
    typer.echo(f"version       {state.version}, {applied}")
    typer.echo(f"rows outside  {rows}")
