"""The dataflow of each process. Only this module chooses the index's projection for a running system."""

import importlib
from typing import Any

from bytewax.dataflow import Dataflow

from appview.plugin import AppView
from connectors.runtime.health import Health
from schemas.flows import flow_name
from schemas.settings import Settings


def dataflow(name: str, settings: Settings, health: Health) -> Dataflow:
    """The flow of a process, with its real connectors. Raises OperatorError."""
    flow = flow_name(name)
    module: Any = importlib.import_module(f"flows.{flow}.flow")
    plugins = (AppView(settings),) if flow == "index" else ()
    made: Dataflow = module.flow(settings, health, *plugins)
    return made
