"""The dataflow of each process. Here the index gets its projection: the only place that chooses one for a running system."""

import importlib
from typing import Any

from bytewax.dataflow import Dataflow

from appview.plugin import AppView
from connectors.runtime.health import Health
from schemas.settings import Settings

FLOWS = {
    "list-repos": "list_repos",
    "firehose": "firehose",
    "labels": "labels",
    "backfill": "backfill",
    "index": "index",
}
"""Process → its folder in `flows/`."""


def dataflow(name: str, settings: Settings, health: Health) -> Dataflow:
    """The flow with its real connectors. Raises OperatorError."""
    module: Any = importlib.import_module(f"flows.{FLOWS[name]}.flow")
    plugins = (AppView(settings),) if name == "index" else ()
    made: Dataflow = module.flow(settings, health, *plugins)
    return made
