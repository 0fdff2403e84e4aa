"""`docs/flows.md`: the pictures of the five dataflows, drawn from their `Dataflow` objects. Run as a module, it redraws the page."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from bytewax.visualize import RenderedOperator, to_rendered

from connectors.runtime.health import Health
from flows.backfill.flow import build as build_backfill
from flows.index.flow import build as build_index
from schemas.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "flows.md"
FLOWS = ("list_repos", "firehose", "labels", "backfill", "index")
_PICTURE = re.compile(
    r"(<!-- picture of (\w+), drawn by `python -m tools\.flow_pictures` -->\n).*?(<!-- end -->)", re.DOTALL
)


def dataflow(name: str) -> Dataflow:
    """A flow as its process builds it. Two get an empty source and sink: the index would connect to Kafka, and the backfill
    changes the interpreter's settings.
    """
    if name == "index":
        return build_index(TestingSource([]), TestingSink([]))
    if name == "backfill":
        return build_backfill(TestingSource([]), TestingSink([]))  # type: ignore[arg-type]  # never run
    made: Dataflow = import_module(f"flows.{name}.flow").flow(Settings.model_validate({}), Health(name, exported=False))
    return made


def steps(name: str) -> list[str]:
    """The names of a flow's steps, in the order of their definition."""
    return [step.step_name for step in to_rendered(dataflow(name)).substeps]


def picture(name: str) -> str:
    """A flow as a Mermaid diagram: inputs and outputs have round ends."""
    rendered = to_rendered(dataflow(name)).substeps
    lines = ["flowchart LR", *map(_node, rendered), *_edges(rendered)]
    return "```mermaid\n" + "\n    ".join(lines) + "\n```\n"


def _node(step: RenderedOperator) -> str:
    start, end = ("([", "])") if step.op_type in ("input", "output") else ("[", "]")
    return f"{step.step_name}{start}{step.step_name}{end}"


def _edges(rendered: list[RenderedOperator]) -> Iterator[str]:
    owner = {port.port_id: step.step_name for step in rendered for port in step.out_ports}
    for step in rendered:
        for port in step.inp_ports:
            for source in port.from_port_ids:
                yield f"{owner[source]} --> {step.step_name}"


def page(text: str) -> str:
    """The page's text with today's pictures. Raises ValueError if the mark of a picture is missing."""
    marks = [mark[1] for mark in _PICTURE.findall(text)]
    if sorted(marks) != sorted(FLOWS):
        raise ValueError(f"{PAGE.name} has marks for {', '.join(marks) or 'no picture'}")
    return _PICTURE.sub(lambda mark: f"{mark[1]}{picture(mark[2])}{mark[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
