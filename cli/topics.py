"""`sluice topics` and `sluice shards`: the topics of the log, and the databases that their partitions belong to."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from cli.base import AsJson, DataDir, answerable, load, located, with_database
from schemas.errors import OperatorError

topics_app = typer.Typer(help="The topics of the log.", no_args_is_help=True)
shards_app = typer.Typer(help="The databases of the repos, with SLUICE_SHARDS.", no_args_is_help=True)


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
def topics_docs(topic: Annotated[str | None, typer.Argument(help="Topic, with its prefix.")] = None) -> None:
    """Print the page of a topic: key, fields, who writes and reads it. Without a topic, print all names."""
    from tools.topic_docs import pages  # noqa: PLC0415 - as above

    found = {name.removesuffix(".md"): page for name, page in pages(load().kafka_topic_prefix).items()}
    if topic is None:
        typer.echo("\n".join(found))
    elif topic in found:
        typer.echo(found[topic], nl=False)
    else:
        raise OperatorError(f"there is no topic {topic!r}; choose one of {', '.join(found)}")


@shards_app.command("check")
@answerable
def shards_check(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Check that each shard answers, is the right database and has all migrations. Exit code 1 if one fails."""
    from cli.status_text import table  # noqa: PLC0415 - as above
    from ops.shards import check  # noqa: PLC0415 - as above

    found = check(with_database(data_dir))
    rows = [asdict(one) for one in found]
    typer.echo(json.dumps(rows) if as_json else table(rows))
    raise typer.Exit(1 if any(one.problem for one in found) else 0)


@shards_app.command("accept-loss")
@answerable
def shards_accept_loss(name: str, data_dir: DataDir = None) -> None:
    """Let an empty database become the shard NAME, which was lost; its repos are listed and fetched again."""
    from connectors.postgres.shard_identity import accept_loss  # noqa: PLC0415 - as above

    accept_loss(with_database(data_dir), name)
    typer.echo(f"an empty database may become shard {name}; its repos are listed again")


@shards_app.command("attach")
@answerable
def shards_attach(data_dir: DataDir = None) -> None:
    """Make sluice.record in the main database a view over all shards. Repeat it after `sluice migrate`."""
    from ops.shards import attach  # noqa: PLC0415 - as above

    typer.echo("\n".join(attach(with_database(data_dir))))
