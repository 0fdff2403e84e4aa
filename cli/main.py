"""The command `sluice`. Operator errors are one line on standard error with exit code 2."""

import atexit
import faulthandler
import gc
import json
import os
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer
from typer.completion import get_completion_inspect_parameters, shell_complete

from cli import backup, data
from cli.appview import appview_app
from cli.base import AsJson, DataDir, OneLine, Parent, answerable, load, located, unless_set, with_database
from cli.filters import filters_app
from cli.jobs import backfill_app
from cli.throttles import storms_app
from cli.topics import shards_app, topics_app
from protocol import IS_COMPILED
from schemas.errors import OperatorError
from schemas.flows import PROCESSES, process_name

app = typer.Typer(
    cls=OneLine,
    help="Mirrors the AT Protocol network into a Kafka-compatible log and PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, group in (
    ("topics", topics_app),
    ("shards", shards_app),
    ("backfill", backfill_app),
    ("filters", filters_app),
    ("storms", storms_app),
    ("appview", appview_app),
):
    app.add_typer(group, name=name)
data.commands(app)
backup.commands(app)

COMPLETE = "_SLUICE_COMPLETE"
Shell = Literal["bash", "zsh", "fish"]


def _names(context: typer.Context) -> list[str]:
    root = context.find_root()
    return root.command.list_commands(root) if isinstance(root.command, OneLine) else []


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - no other command needs it

        typer.echo(f"sluice {version('sluice')}, protocol/ {'compiled' if IS_COMPILED else 'not compiled'}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Print the version, and if protocol/ is compiled."
        ),
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    faulthandler.enable()  # a crash in a library's native code names the Python lines it came from
    atexit.register(gc.freeze)  # the interpreter's end would search all of the memory for cycles: seconds, in control
    if COMPLETE in os.environ:
        get_completion_inspect_parameters()  # registers the shells; Typer does it only with options of its own for them
    app(prog_name="sluice")


@app.command()
@answerable
def up(
    *,
    relay: Annotated[list[str] | None, typer.Option(help="Relay (or PDS) to mirror; repeatable.")] = None,
    plc: Annotated[str | None, typer.Option(help="PLC directory.")] = None,
    labeler: Annotated[list[str] | None, typer.Option(help="Labeler to mirror; repeatable.")] = None,
    bootstrap: Annotated[
        str | None, typer.Option(help="Brokers, HOST:PORT. The default is an embedded broker.")
    ] = None,
    database: Annotated[str | None, typer.Option(help="PostgreSQL URL. The default is an embedded server.")] = None,
    data_dir: DataDir = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of backfill processes, and of index processes.")] = 1,
    firehose_shares: Annotated[
        int | None, typer.Option(min=1, help="Number of firehose processes, each for its share of the repos.")
    ] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Mirror the bundled simulated network.")] = False,
    until_synced: Annotated[
        bool,
        typer.Option("--until-synced", help="Exit with 0 when the mirror is complete; prints one JSON line of totals."),
    ] = False,
) -> None:
    """Run everything on this machine: log, PostgreSQL and all processes. Ctrl-C stops it cleanly."""
    from local.up import UpOptions, up  # noqa: PLC0415 - loads what `sluice settings` has no need of

    if simulate and (relay or plc or labeler):
        given = "--relay" if relay else "--plc" if plc else "--labeler"
        raise OperatorError(f"--simulate mirrors only the simulated network; leave out {given}, or --simulate")
    settings = load(
        relays=relay or None,
        plc=plc,
        labelers=labeler or None,
        kafka_bootstrap=bootstrap,
        database=database,
        data_dir=data_dir,
        firehose_shares=firehose_shares,
        **unless_set(kafka_partitions=8, kafka_replication=1),
    )
    raise typer.Exit(up(settings, UpOptions(simulate, until_synced, workers)))


FlowName = Annotated[
    str,
    typer.Argument(
        metavar="FLOW", help="A flow, or one of its processes: index-2.", autocompletion=lambda: list(PROCESSES)
    ),
]


@app.command()
@answerable
def stop(flow: FlowName, data_dir: DataDir = None) -> None:
    """Drain and stop a flow of the running `sluice up`, until `sluice start`. The others go on."""
    from local.children.stop_requests import stop_or_start  # noqa: PLC0415 - as above

    typer.echo(f"stopped {' '.join(stop_or_start(load(data_dir=data_dir).data_dir, flow, stopped=True))}")


@app.command()
@answerable
def start(flow: FlowName, data_dir: DataDir = None) -> None:
    """Start a flow that `sluice stop` has stopped."""
    from local.children.stop_requests import stop_or_start  # noqa: PLC0415 - as above

    typer.echo(f"started {' '.join(stop_or_start(load(data_dir=data_dir).data_dir, flow, stopped=False))}")


@app.command()
@answerable
def run(
    process: Annotated[
        str,
        typer.Argument(
            help="list-repos, firehose, labels, backfill, index, control or serve.",
            autocompletion=lambda: list(PROCESSES),
        ),
    ],
    share: Annotated[
        int | None, typer.Option(min=0, help="Of firehose: which of SLUICE_FIREHOSE_SHARES this process is, from 0.")
    ] = None,
    parent: Parent = 0,
) -> None:
    """Run one process, as in a pod. Its settings come from the environment."""
    from local.run import die_with, run  # noqa: PLC0415 - loads the engine

    die_with(parent)
    name = process_name(process)
    if name not in PROCESSES:
        raise OperatorError(f"there is no process {process!r}; choose one of {', '.join(PROCESSES)}")
    if share is not None and name != "firehose":
        raise OperatorError(f"--share is for firehose; leave it out for {name}")
    run(name, load(firehose_share=share))


@app.command()
@answerable
def migrate(data_dir: DataDir = None) -> None:
    """Apply the migrations of this release to the database, and to those of SLUICE_SHARDS."""
    from connectors.postgres.migrate import migrate  # noqa: PLC0415 - as above
    from connectors.postgres.shard_identity import prepare_shards  # noqa: PLC0415 - as above

    settings = with_database(data_dir)
    applied = [*migrate(settings.database), *prepare_shards(settings)]
    typer.echo("\n".join(f"applied {name}" for name in applied) or "nothing to apply")


@app.command()
@answerable
def status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the state of the mirror: repos, rates, lag, failing hosts, cursors, dead letters, jobs, and addresses."""
    from cli.status_text import collect, page  # noqa: PLC0415 - as above
    from control.attention import as_json as as_json_of  # noqa: PLC0415 - as above
    from control.process_status import addresses  # noqa: PLC0415 - as above

    settings = located(data_dir, "kafka_bootstrap", "database")
    seen = collect(settings)
    found = addresses(settings, seen.processes)
    typer.echo(json.dumps(as_json_of(seen) | {"addresses": found}) if as_json else page(seen, found))


@app.command()
@answerable
def doctor(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Check database, log, clocks, upstreams and disk, and print a remedy for each problem. Exit code 1 if a check fails."""
    from ops.doctor import CheckState, as_text, examine  # noqa: PLC0415 - loads what `sluice settings` has no need of

    checks = examine(located(data_dir, "kafka_bootstrap", "database"))
    good = all(check.state is not CheckState.FAIL for check in checks)
    if as_json:
        typer.echo(json.dumps({"good": good, "checks": [asdict(check) for check in checks]}))
    else:
        typer.echo(as_text(checks))
    raise typer.Exit(0 if good else 1)


@app.command()
@answerable
def settings(as_json: AsJson = False) -> None:
    """List every setting with its variable, value, default and meaning."""
    from cli import settings_text  # noqa: PLC0415 - as above

    typer.echo((settings_text.as_json if as_json else settings_text.page)(load()))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    help="Run only the simulated network; prints one JSON line of URLs. See `sluice simulate --help`.",
)
@answerable
def simulate(context: typer.Context, parent: Parent = 0) -> None:
    """Run the simulator with these options. On standard error: how to mirror it."""
    from local.commands import mirror_command  # noqa: PLC0415 - as above
    from local.run import die_with  # noqa: PLC0415 - as above
    from simulator.__main__ import parser  # noqa: PLC0415 - as above
    from simulator.config import ImpossibleConfigError  # noqa: PLC0415 - as above
    from simulator.faults.faults import UnknownFaultError  # noqa: PLC0415 - as above
    from simulator.server import SimulatorConfig, print_ready, serve  # noqa: PLC0415 - as above

    def ready(urls: dict[str, Any]) -> None:
        print_ready(urls)
        if not parent:
            typer.echo(f"mirror it with: {mirror_command(urls)}", err=True)

    die_with(parent)
    options = parser()
    options.prog = "sluice simulate"
    try:
        raise typer.Exit(serve(SimulatorConfig(**vars(options.parse_args(context.args))), ready=ready))
    except (OSError, UnknownFaultError, ImpossibleConfigError) as err:
        raise OperatorError(f"simulated network: {err}") from err


@app.command("help")
def show_help(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(help="A command, such as `backfill start`.", autocompletion=_names)
    ] = None,
) -> None:
    """Show the help of a command."""
    context.find_root().command.main([*(command or []), "--help"], "sluice")


@app.command()
def completion(context: typer.Context, shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print the completion script of a shell: `source <(sluice completion bash)`, `sluice completion fish | source`."""
    get_completion_inspect_parameters()
    shell_complete(context.find_root().command, {}, "sluice", COMPLETE, f"source_{shell}")
