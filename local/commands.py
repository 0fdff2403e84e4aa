"""The commands that `sluice up` runs as child processes: one per flow, several workers for backfill and index, shares of the firehose."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from local.children.supervisor import Command
from local.embedded.guarded_process import free_port
from schemas.settings import Settings, variables

SESSION_SECONDS = 10.0
"""Session timeout of consumer groups: on one machine, a member without heartbeats for this long is dead."""


MODULES = {
    "control": "control.api.serve",
    "serve": "serve.application",
    "list-repos": "flows.list_repos.flow",
    **{kind: f"flows.{kind}.flow" for kind in ("index", "backfill", "labels", "firehose")},
}
"""What each process loads, and the fork server beforehand."""
SIMULATOR = "simulator.server"


def preloaded(*, simulate: bool) -> list[str]:
    """The modules of all processes, in the order in which these are started."""
    return [*([SIMULATOR] if simulate else []), "local.run", "argparse", *MODULES.values(), "bytewax.run"]


def commands(settings: Settings, workers: int) -> list[Command]:
    """The processes of the mirror, readers of topics before their writers."""
    kinds = ["control", "serve", *["index"] * workers, *["backfill"] * workers]
    kinds += [*(["labels"] if settings.labelers else []), *["firehose"] * settings.firehose_shares, "list-repos"]
    found: list[Command] = []
    ports: list[int] = [settings.http_port] if settings.http_port else []
    for kind in kinds:
        number = sum(command.kind == kind for command in found) + 1
        name = f"{kind}-{number}" if kinds.count(kind) > 1 else kind
        port = settings.http_port if kind == "control" and settings.http_port else free_port(ports)
        ports.append(port)
        share = ("--share", str(number - 1)) if kind == "firehose" else ()
        command = sluice("run", kind, *share)
        found.append(Command(name, kind, command, environment(settings, port), port, module=MODULES[kind]))
    return found


def listening(address: str) -> str:
    """The listen address of `serve`, with a free port in the place of 0."""
    host, _, port = address.rpartition(":")
    return address if int(port) else f"{host}:{free_port()}"


def sluice(*arguments: str) -> tuple[str, ...]:
    """A `sluice` command line that ends when this process ends."""
    # -P: do not import modules from the working directory
    module = "local.sluice_run" if arguments[0] == "run" else "cli"
    return (sys.executable, "-P", "-m", module, arguments[0], "--parent", str(os.getpid()), *arguments[1:])


def mirror_command(urls: Mapping[str, Any]) -> str:
    """The shell command that mirrors a simulated network with these URLs. Without its DNS no handle is verified."""
    upstreams = [f"--relay {url}" for url in urls["relays"]] + [f"--labeler {url}" for url in urls["labelers"]]
    variables = f"SLUICE_ALLOW_PRIVATE_HOSTS=true SLUICE_HANDLE_DNS={urls['dns']}"
    return f"{variables} sluice up --plc {urls['plc']} {' '.join(upstreams)}"


def environment(settings: Settings, port: int) -> dict[str, str]:
    """The settings as environment variables, with the process's own HTTP port."""
    session = {"transport_session_seconds": SESSION_SECONDS} | settings.tuning.model_dump(exclude_unset=True)
    return variables(settings.replaced(http_port=port, **session))
