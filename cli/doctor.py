"""`sluice doctor`: is everything there that a mirror needs?"""

import json
from dataclasses import asdict

import typer

from cli.base import AsJson, DataDir, answerable, located


@answerable
def doctor(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Check database, log, clocks, upstreams and disk, each with a remedy. Exit code 1 if something fails."""
    from ops.doctor import State, as_text, examine  # noqa: PLC0415 - loads what `sluice settings` has no need of

    checks = examine(located(data_dir, "kafka_bootstrap", "database"))
    good = all(check.state is not State.FAIL for check in checks)
    if as_json:
        typer.echo(json.dumps({"good": good, "checks": [asdict(check) for check in checks]}))
    else:
        typer.echo(as_text(checks))
    raise typer.Exit(0 if good else 1)
