"""`sluice repo`, `record`, `audit`, `replay` and `export`. Also adds the command groups about the mirror's data."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.base import AsJson, DataDir, all_dids, answerable, located, one_of, with_database
from cli.cursors import cursors_app
from cli.dead_letters import dead_letters_app, skipped_app
from cli.throttles import hosts_app
from protocol.encoding.safe_text import printable
from schemas.errors import OperatorError
from schemas.patterns import PATTERN, WRITE, time_of

Workers = Annotated[int, typer.Option(min=1, max=256, help="Number of worker processes.")]


def commands(app: typer.Typer) -> None:
    """Add these commands to the application."""
    app.command("repo")(repo)
    app.command("record")(record)
    app.command("audit")(audit)
    app.command("replay")(replay)
    app.command("export")(export)
    app.add_typer(cursors_app, name="cursors")
    app.add_typer(dead_letters_app, name="dead-letters")
    app.add_typer(skipped_app, name="skipped")
    app.add_typer(hosts_app, name="hosts")


@answerable
def repo(
    account: Annotated[str, typer.Argument(help="DID or handle.")], data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """Show a repo: phase, revs, attempts and errors, newest records, labels, buffered events. Exit code 1 if it is unknown."""
    from cli.status_text import as_json_text, repo_page  # noqa: PLC0415 - as above
    from control.repo_details import repo_details  # noqa: PLC0415 - as above

    with _reader(data_dir) as reader:
        found = repo_details(reader, _known(reader, account))
    if found is None:
        raise _not_found(f"{account} is not in the mirror; a repo is once a relay or PDS of the mirror has listed it")
    typer.echo(as_json_text(found) if as_json else repo_page(found))


@answerable
def record(
    uri: Annotated[str, typer.Argument(metavar="AT-URI", help="at://DID/COLLECTION/RKEY, also with a handle.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show a record: CID, rev and JSON, and why the JSON is missing or not exact. Exit code 1 if it is not in the mirror."""
    from cli.status_text import as_json_text, record_page  # noqa: PLC0415 - as above
    from control.repo_details import find_record, find_repo, parts_of  # noqa: PLC0415 - as above

    account, collection, rkey = parts_of(uri)
    with _reader(data_dir) as reader:
        did = _known(reader, account)
        found = find_record(reader, did, collection, rkey)
        if found is None:
            of = find_repo(reader, did)
            phase = f"its repo is in phase {of['phase']}" if of else "its repo is unknown"
            raise _not_found(f"{uri} is not in the mirror; {phase}")
    value = found | {"json": found["json"] and json.loads(found["json"])}
    typer.echo(as_json_text(value) if as_json else record_page(value))


@contextmanager
def _reader(data_dir: Path | None) -> Iterator[Any]:
    from control.repo_details import DirectReader  # noqa: PLC0415 - loads what `sluice settings` has no need of

    reader = DirectReader(with_database(data_dir), "sluice repo")
    try:
        yield reader
    finally:
        reader.close()


def _known(reader: Any, account: str) -> str:
    from control.repo_details import did_of  # noqa: PLC0415 - as above

    did: str | None = did_of(reader, account)
    if did is None:
        raise _not_found(f"no account that the mirror has resolved claims the handle {account}; give its DID")
    return did


def _not_found(what: str) -> typer.Exit:
    typer.echo(f"sluice: {printable(what, 3000)}", err=True)
    return typer.Exit(1)


@answerable
def audit(
    *,
    dids: Annotated[list[str] | None, typer.Argument(help="DIDs to audit.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every repo in sync. Resumes if it was stopped.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="This many repos, chosen at random.")] = 0,
    against_pds: Annotated[
        bool, typer.Option("--against-pds", help="Also compare with the latest commits of the PDSes.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch repos that differ again.")] = False,
    roots_only: Annotated[bool, typer.Option("--roots-only", help="Do not hash the records again.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start over instead of resuming.")] = False,
    workers: Workers = 1,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Verify the mirror: rebuild the tree of each repo, hash every record, check every signature. Exit code 1 if one differs."""
    from ops.audit import audit  # noqa: PLC0415 - loads what `sluice settings` has no need of
    from ops.audit_report import AuditOptions, AuditScope  # noqa: PLC0415 - as above

    one_of("name the DIDs to audit, or give --all, or --sample N", DIDs=dids, all=every, sample=sample)
    all_dids(dids or [])
    settings = with_database(data_dir)
    scope = AuditScope(tuple(dids) if dids else None, sample or None)
    options = AuditOptions(
        bodies=not roots_only, against_pds=against_pds, repair=repair, restart=restart, workers=workers
    )
    report = audit(settings, scope, options, _progress)
    typer.echo(json.dumps(report.as_json()) if as_json else report.as_text())
    raise typer.Exit(0 if report.good else 1)


@answerable
def replay(
    *,
    topic: Annotated[str, typer.Argument(help="Topic to replay. Leave it out with --all.")] = "",
    from_offset: Annotated[
        list[str] | None, typer.Option(help="Start at PARTITION:OFFSET; repeatable. Other partitions are not replayed.")
    ] = None,
    from_time: Annotated[str, typer.Option(help="Start at the first message at or after this time (ISO 8601).")] = "",
    to: Annotated[
        list[str] | None, typer.Option(help="Stop before PARTITION:OFFSET (repeatable), or before a time.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Rebuild another database from the whole log.")] = False,
    into: Annotated[str, typer.Option(help="PostgreSQL URL of an empty database, with --all.")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Process messages of the log again, beside the running index; or, with --all, build a database from the log alone."""
    from connectors.postgres.connection import check_database  # noqa: PLC0415 - as above
    from ops import rebuild_from_log, replay  # noqa: PLC0415 - as above
    from ops.replay_arguments import spans_asked  # noqa: PLC0415 - as above

    if every:
        if topic or from_offset or from_time or to or not into:
            raise OperatorError(
                "--all replays the whole log into another database: give --into URL, and no other option"
            )
        settings = located(data_dir, "kafka_bootstrap")
        check_database(settings.model_copy(update={"database": into}), "--into")
        done = rebuild_from_log.rebuild(settings, into, _every_second("messages replayed"))
        typer.echo(json.dumps(asdict(done)) if as_json else rebuild_from_log.as_text(done))
        raise typer.Exit(1 if done.unfinished or done.refused else 0)
    if into:
        raise OperatorError(
            "--into goes with --all: the whole log into another database; leave it out, or give --all alone"
        )
    if not topic:
        raise OperatorError("name the topic to replay, or give --all --into URL")
    settings = with_database(data_dir, "kafka_bootstrap")
    starts, ends = spans_asked(settings, topic, from_offset or [], from_time, to or [])
    replayed = replay.replay(settings, topic, starts, ends, _every_second("messages replayed"))
    typer.echo(json.dumps(asdict(replayed)) if as_json else replay.as_text(replayed))


@answerable
def export(
    *,
    parquet: Annotated[
        Path, typer.Option(help="Folder to write Parquet files to; an unfinished export in it is resumed.")
    ],
    collection: Annotated[
        list[str] | None, typer.Option(help="Only this collection, or NSID.* for all below it; repeatable.")
    ] = None,
    since: Annotated[str, typer.Option(help="Only records indexed at or after this time (ISO 8601).")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write the records of repos in sync to Parquet files, by collection and day, for DuckDB, pandas or Spark."""
    from ops.export import ExportScope, export  # noqa: PLC0415 - as above

    wrong = next((one for one in collection or [] if not re.match(PATTERN, one) or one == "*"), None)
    if wrong is not None:
        raise OperatorError(f"--collection {wrong[:100]}: {'leave it out for all' if wrong == '*' else WRITE[PATTERN]}")
    start = time_of("--since", since).isoformat() if since else ""
    settings = with_database(data_dir)
    done = export(settings, parquet, ExportScope(tuple(sorted(collection or [])), start), _progress)
    text = f"{done.records} records of {done.repos} repos in {done.files} files, {done.bytes} bytes: {parquet}"
    typer.echo(json.dumps(asdict(done)) if as_json else text)


def _every_second(what: str) -> Callable[[int], None]:
    """A function that prints progress to standard error, at most once a second."""
    printed = time.monotonic()

    def report(count: int) -> None:
        nonlocal printed
        if time.monotonic() - printed >= 1.0:
            printed = time.monotonic()
            _progress(f"{count} {what}")

    return report


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
