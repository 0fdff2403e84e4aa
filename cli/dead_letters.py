"""`sluice dead-letters` and `sluice skipped`: work that could not be done, and what to do about it."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.base import AsJson, DataDir, Limit, answerable, located, with_database
from schemas.errors import OperatorError
from schemas.patterns import place_of

dead_letters_app = typer.Typer(help="Messages and events that could not be processed.", no_args_is_help=True)
skipped_app = typer.Typer(help="Listing ranges that were skipped.", no_args_is_help=True)

Place = Annotated[str, typer.Argument(help="PARTITION:OFFSET of a dead letter.")]
Places = Annotated[list[str] | None, typer.Argument(help="PARTITION:OFFSET of dead letters.")]
Every = Annotated[bool, typer.Option("--all", help="All open dead letters.")]
Reason = Annotated[str | None, typer.Option(help="Open dead letters with this reason.")]
Origin = Annotated[str | None, typer.Option(help="Open dead letters from this topic or flow.")]


@dead_letters_app.command("list")
@answerable
def dead_letters_list(
    state: Annotated[str, typer.Option(help="open, retried, dismissed or all.")] = "open",
    limit: Limit = 100,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest first."""
    if state not in ("open", "retried", "dismissed", "all"):
        raise OperatorError(f"--state {state}: choose open, retried, dismissed or all")
    _table("dead_letters", data_dir, as_json, {"state": state, "limit": limit})


@dead_letters_app.command("show")
@answerable
def dead_letters_show(place: Place, data_dir: DataDir = None) -> None:
    """Show a dead letter, the meaning of its reason, and its payload, as JSON."""
    with _dead_letters(data_dir) as letters:
        typer.echo(json.dumps(letters.show(_places([place])[0]), default=str, indent=2))


@dead_letters_app.command("retry")
@answerable
def dead_letters_retry(
    *,
    chosen: Places = None,
    every: Every = False,
    reason: Reason = None,
    topic: Origin = None,
    data_dir: DataDir = None,
) -> None:
    """Process dead letters again with the current code. Exit code 1 if one of them stays open."""
    with _dead_letters(data_dir) as letters:
        left = 0
        for place in _chosen(letters, chosen, every, reason, topic):
            retried = letters.retry(place)
            left += retried.state == "open"
            typer.echo(f"{place[0]}:{place[1]} {retried.state}{': ' + retried.why if retried.why else ''}")
    raise typer.Exit(1 if left else 0)


@dead_letters_app.command("dismiss")
@answerable
def dead_letters_dismiss(
    *,
    chosen: Places = None,
    every: Every = False,
    reason: Reason = None,
    topic: Origin = None,
    data_dir: DataDir = None,
) -> None:
    """Dismiss dead letters that need no action. They stay in the topic."""
    with _dead_letters(data_dir) as letters:
        for place in _places(chosen or []):
            letters.require_open(place)  # dismiss all of the named ones, or none
        done = sum(letters.dismiss(place) for place in _chosen(letters, chosen, every, reason, topic))
    typer.echo(f"dismissed {done}")


@skipped_app.command("list")
@answerable
def skipped_list(limit: Limit = 100, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List skipped listing ranges, the open ones first."""
    _table("skipped", data_dir, as_json, {"limit": limit})


@skipped_app.command("fill")
@answerable
def skipped_fill(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids of ranges; the default is all open ones.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Recover skipped ranges now: list-repos lists them again, and lists the PDSes if the relay still fails."""
    from flows.list_repos.gap_recovery import recover_now  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    due = recover_now(settings, ids)
    missing = sorted(set(ids or []) - set(due))
    if missing and not due:
        raise OperatorError(
            f"not open, or unknown: {', '.join(map(str, missing))}; `sluice skipped list` shows the open ones first"
        )
    typer.echo(f"{len(due)} ranges are due now")
    for number in missing:
        typer.echo(f"{number} is not open, or unknown", err=True)


@contextmanager
def _dead_letters(data_dir: Path | None) -> Iterator[Any]:
    from control.dead_letters import DeadLetters  # noqa: PLC0415 - as above

    settings = with_database(data_dir, "kafka_bootstrap")
    letters = DeadLetters(settings)
    try:
        yield letters
    finally:
        letters.close()


def _places(values: Iterable[str]) -> list[tuple[int, int]]:
    found = []
    for value in values:
        place = place_of(value)
        if place is None:
            raise OperatorError(f"{value}: write PARTITION:OFFSET, as `sluice dead-letters list` shows it")
        found.append(place)
    return found


def _chosen(letters: Any, chosen: list[str] | None, every: bool, *filters: str | None) -> Iterable[Any]:
    """The dead letters that the arguments name, or all open ones that match the options."""
    if bool(chosen) == (every or any(filters)):
        raise OperatorError("name dead letters as PARTITION:OFFSET, or give --all, --reason or --topic")
    found: Iterable[Any] = _places(chosen) if chosen else letters.open_places(*filters)
    return found


def _table(query: str, data_dir: Path | None, as_json: bool, values: dict[str, object]) -> None:
    from cli.status_text import rows, table  # noqa: PLC0415 - as above

    found = rows(located(data_dir, "database"), query, values)
    typer.echo(json.dumps(found) if as_json else table(found))
