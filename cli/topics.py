"""`sluice topics`: apply and diff what schemas/topics.yml declares; docs, the topics' pages."""

import threading
from typing import Annotated

import typer

from cli.base import DataDir, answerable, located
from schemas.errors import OperatorError
from schemas.settings import load

topics_app = typer.Typer(help="The topics of the log.", no_args_is_help=True)


@topics_app.command("apply")
@answerable
def topics_apply(data_dir: DataDir = None) -> None:
    """Create missing topics and update settings; partition counts are never changed, nothing is deleted."""
    from connectors.kafka import topics  # noqa: PLC0415 - loads what `sluice settings` has no need of

    settings = located(data_dir, "kafka_bootstrap")
    changed = topics.apply(settings)
    typer.echo("\n".join(f"applied {difference}" for difference in changed) or "nothing to change")
    if settings.kafka_schema_registry:
        from tools.json_schemas import RegistryUnavailable, register  # noqa: PLC0415 - as above

        try:
            ids = register(settings)
        except RegistryUnavailable as err:
            raise OperatorError(f"SLUICE_KAFKA_SCHEMA_REGISTRY: {err}") from err
        typer.echo("\n".join(f"registered {subject} as {number}" for subject, number in ids.items()))


@topics_app.command("diff")
@answerable
def topics_diff(data_dir: DataDir = None) -> None:
    """Show how the broker's topics differ from the declared ones; exit code 1 if they do."""
    from connectors.kafka import topics  # noqa: PLC0415 - as above

    differences = topics.diff(located(data_dir, "kafka_bootstrap"))
    typer.echo("\n".join(map(str, differences)) or "no difference")
    raise typer.Exit(1 if differences else 0)


@topics_app.command("docs")
@answerable
def topics_docs(
    topic: Annotated[str | None, typer.Argument(help="Topic, with its prefix.")] = None,
    serve: Annotated[
        str | None, typer.Option(help="HOST:PORT where to serve all pages as a git repository, for Redpanda Console.")
    ] = None,
) -> None:
    """Print the page of a topic: key, fields, who writes and reads it. Without a topic, the names."""
    from tools.topic_docs import pages  # noqa: PLC0415 - as above

    found = pages(load().kafka_topic_prefix)
    if serve is not None:
        _serve(found, serve)
    elif topic is None:
        typer.echo("\n".join(name.removesuffix(".md") for name in found))
    elif f"{topic}.md" in found:
        typer.echo(found[f"{topic}.md"], nl=False)
    else:
        known = ", ".join(name.removesuffix(".md") for name in found)
        raise OperatorError(f"there is no topic {topic!r}; choose one of {known}")


def _serve(files: dict[str, str], address: str) -> None:
    """Serve until SIGTERM."""
    from connectors.runtime.stop import STOP, stop_on_signals  # noqa: PLC0415 - as above
    from ops.git_pages import server  # noqa: PLC0415 - as above

    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise OperatorError(f"--serve {address}: give HOST:PORT, such as 127.0.0.1:8000")
    try:
        listening = server(files, host, int(port))
    except OSError as err:
        raise OperatorError(
            f"--serve {address}: {err.strerror}; choose a free port and an address of this machine"
        ) from err
    stop_on_signals()
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    typer.echo(f"git clone http://{address}/topics.git")
    STOP.wait()
    listening.shutdown()
