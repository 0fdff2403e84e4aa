"""`sluice cursors`: positions of upstreams and of consumer groups."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.base import AsJson, DataDir, answerable, located
from schemas.errors import OperatorError

cursors_app = typer.Typer(help="Where each upstream and each consumer group is read up to.", no_args_is_help=True)

Who = Annotated[str, typer.Argument(help="firehose, labels or list_repos; or a group: index, backfill, dead-letters.")]
Where = Annotated[str, typer.Argument(help="Full URL of the upstream; of a group the topic.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@cursors_app.command("list")
@answerable
def cursors_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List where each upstream and each consumer group is read up to. Exit code 1 if a group stands past the end."""
    from cli.status_text import rows, table  # noqa: PLC0415 - as above
    from connectors.postgres.connection import check_database  # noqa: PLC0415 - as above
    from control.cursors import as_row, standings  # noqa: PLC0415 - loads what `sluice settings` has no need of

    settings = located(data_dir, "database", "kafka_bootstrap")
    check_database(settings)
    upstreams, groups = rows(settings, "cursors", {}), standings(settings)
    found = [as_row(standing) for standing in groups]
    if as_json:
        typer.echo(json.dumps({"upstreams": upstreams, "groups": found}))
    else:
        typer.echo(f"{table(upstreams)}\n\n{table(found)}")
    past = [one for one in groups if one.past_end]
    for one in past:
        typer.echo(
            f"{one.group} stands at {one.position} of {one.topic}/{one.partition}, which ends at {one.end}: the log was"
            " replaced or has lost messages; see `sluice cursors reset`",
            err=True,
        )
    raise typer.Exit(1 if past else 0)


@cursors_app.command("set")
@answerable
def cursors_set(
    who: Who,
    where: Where,
    positions: Annotated[list[str], typer.Argument(help="A position; of a group PARTITION:OFFSET, one or more.")],
    yes: Yes = False,
    data_dir: DataDir = None,
) -> None:
    """Set the position of a flow at an upstream, or of a consumer group in a topic. Whatever is set must not run."""
    from control.cursors import check_position  # noqa: PLC0415 - as above
    from ops.replay import partition_offsets  # noqa: PLC0415 - as above

    group = _is_group(who)
    if not group and len(positions) != 1:
        raise OperatorError(f"{who} has one position of {where}; give one")
    if not group:
        check_position(who, positions[0])
    wanted: Any = partition_offsets("position", positions) if group else positions[0]
    _move(data_dir, who, where, wanted, f"set {who} of {where} to {' '.join(positions)}", yes=yes)


@cursors_app.command("reset")
@answerable
def cursors_reset(
    who: Who,
    where: Where,
    to: Annotated[str, typer.Option(help="start or end: of a group, where in the log.")] = "start",
    yes: Yes = False,
    data_dir: DataDir = None,
) -> None:
    """Forget where a flow stands at an upstream (it begins anew), or put a group to the log's start or end."""
    if to not in ("start", "end"):
        raise OperatorError(f"--to {to}: choose start or end")
    if _is_group(who):
        _move(data_dir, who, where, to, f"put {who} to the {to} of {where}", yes=yes)
    else:
        _move(data_dir, who, where, None, f"forget where {who} stands at {where}", yes=yes)


def _is_group(who: str) -> bool:
    from control.cursors import FLOWS, TOPICS  # noqa: PLC0415 - as above

    if who not in (*FLOWS, *TOPICS):
        raise OperatorError(f"there is no {who!r}; choose one of {', '.join((*FLOWS, *TOPICS))}")
    return who in TOPICS


def _move(data_dir: Path | None, who: str, where: str, wanted: Any, what: str, *, yes: bool) -> None:
    """Ask, move, and say from where to where."""
    from connectors.postgres.connection import check_database  # noqa: PLC0415 - as above
    from control.cursors import set_group, set_upstream  # noqa: PLC0415 - as above

    settings = located(data_dir, "kafka_bootstrap", "database")
    check_database(settings)
    if not yes:
        if not sys.stdin.isatty():
            raise OperatorError(f"this would {what}; say so with --yes")
        typer.confirm(f"{what[0].upper()}{what[1:]}?", abort=True)
    if _is_group(who):
        for (topic, part), begin, end in set_group(settings, who, where, wanted):
            lost = " (stepped over: a loss, to be answered with a re-list)" if who == "index" and end > begin else ""
            typer.echo(f"{who} {topic}/{part}: {begin} → {end}{lost}")
        return
    before = set_upstream(settings, who, where, wanted)
    typer.echo(f"{who} {where}: {before or 'the first page'} → {'forgotten' if wanted is None else wanted}")
