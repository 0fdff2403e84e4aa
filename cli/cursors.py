"""`sluice cursors`: list and change the positions of flows at their upstreams, and the offsets of consumer groups."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.base import AsJson, DataDir, answerable, with_database
from schemas.errors import OperatorError
from schemas.flows import flow_name, process_name

cursors_app = typer.Typer(
    help="Positions of flows at their upstreams, and offsets of consumer groups.", no_args_is_help=True
)

Reader = Annotated[
    str, typer.Argument(help="A flow: firehose, labels, list-repos. Or a group: index, backfill, dead-letters.")
]
Source = Annotated[str, typer.Argument(help="Of a flow, the full URL of the upstream; of a group, the topic.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@cursors_app.command("list")
@answerable
def cursors_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List all positions and offsets. Exit code 1 if a group is past the end of its topic."""
    from cli.status_text import rows, table  # noqa: PLC0415 - as above
    from control.cursors import as_row, lags  # noqa: PLC0415 - loads what `sluice settings` has no need of

    settings = with_database(data_dir, "kafka_bootstrap")
    upstreams, groups = rows(settings, "cursors", {}), lags(settings)
    found = [as_row(one) for one in groups]
    if as_json:
        typer.echo(json.dumps({"upstreams": upstreams, "groups": found}))
    else:
        typer.echo(f"{table(upstreams)}\n\n{table(found)}")
    past = [one for one in groups if one.past_end]
    for one in past:
        typer.echo(
            f"{one.group} is at {one.position} of {one.topic}/{one.partition}, which ends at {one.end}: the log was"
            " replaced or has lost messages; see `sluice cursors reset`",
            err=True,
        )
    raise typer.Exit(1 if past else 0)


@cursors_app.command("set")
@answerable
def cursors_set(
    reader: Reader,
    source: Source,
    positions: Annotated[
        list[str], typer.Argument(help="Of a flow, a position; of a group, one or more PARTITION:OFFSET.")
    ],
    yes: Yes = False,
    data_dir: DataDir = None,
) -> None:
    """Set the position of a flow (all its shares) at an upstream, or the offsets of a group in a topic. Stop the process first."""
    from control.cursors import check_position  # noqa: PLC0415 - as above
    from ops.replay_arguments import partition_offsets  # noqa: PLC0415 - as above

    name, is_group = _reader(reader)
    if not is_group and len(positions) != 1:
        raise OperatorError(f"{reader} has one position at {source}; give one")
    if not is_group:
        check_position(name, positions[0])
    wanted: Any = partition_offsets("position", positions) if is_group else positions[0]
    _move(data_dir, reader, source, wanted, f"set {reader} at {source} to {' '.join(positions)}", yes=yes)


@cursors_app.command("reset")
@answerable
def cursors_reset(
    reader: Reader,
    source: Source,
    to: Annotated[str, typer.Option(help="Of a group: start or end of the log.")] = "start",
    yes: Yes = False,
    data_dir: DataDir = None,
) -> None:
    """Remove the position of a flow at an upstream, so that it starts over; or move a group to the log's start or end."""
    if to not in ("start", "end"):
        raise OperatorError(f"--to {to}: choose start or end")
    if _reader(reader)[1]:
        _move(data_dir, reader, source, to, f"move {reader} to the {to} of {source}", yes=yes)
    else:
        _move(data_dir, reader, source, None, f"remove the position of {reader} at {source}", yes=yes)


def _reader(reader: str) -> tuple[str, bool]:
    """The name of a flow or group, and whether it is a group. Raises OperatorError."""
    from control.cursors import TOPICS, UPSTREAM_FLOWS  # noqa: PLC0415 - as above

    if reader in TOPICS:
        return reader, True
    if flow_name(reader) in UPSTREAM_FLOWS:
        return flow_name(reader), False
    known = (*map(process_name, UPSTREAM_FLOWS), *TOPICS)
    raise OperatorError(f"there is no {reader!r}; choose one of {', '.join(known)}")


def _move(data_dir: Path | None, reader: str, source: str, wanted: Any, what: str, *, yes: bool) -> None:
    """Ask for confirmation, move, and print the old and the new position."""
    from control.cursors import set_group, set_upstream  # noqa: PLC0415 - as above

    settings = with_database(data_dir, "kafka_bootstrap")
    if not yes:
        if not sys.stdin.isatty():
            raise OperatorError(f"this would {what}; confirm with --yes")
        typer.confirm(f"{what[0].upper()}{what[1:]}?", abort=True)
    name, is_group = _reader(reader)
    if is_group:
        for (topic, part), begin, end in set_group(settings, name, source, wanted):
            lost = (
                " (skipped: recorded as a loss, which a new listing resolves)"
                if name == "index" and end > begin
                else ""
            )
            typer.echo(f"{reader} {topic}/{part}: {begin} → {end}{lost}")
        return
    before = set_upstream(settings, name, source, wanted)
    typer.echo(f"{reader} {source}: {before or 'the first page'} → {'removed' if wanted is None else wanted}")
