"""The table of all metrics in `docs/metrics.md`, from `connectors.runtime.metrics`. `python -m tools.metrics_page` updates the page."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from connectors.runtime import metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
BEGIN = "<!-- made by `python -m tools.metrics_page` -->\n"
END = "<!-- end -->\n"

Metric = Counter | Gauge | Histogram


def declared() -> Iterator[tuple[str, Metric]]:
    """(name of the constant, metric) in order of declaration. The metrics of a dict have its name."""
    for name, value in vars(metrics).items():
        for one in value.values() if isinstance(value, dict) else (value,):
            if isinstance(one, Counter | Gauge | Histogram):
                yield name, one


def row(metric: Metric) -> str:
    described = next(iter(metric.describe()))
    name = described.name + ("_total" if described.type == "counter" else "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"| `{name}` | {described.type} | {labels or '–'} | {described.documentation} |"


def tables() -> str:
    rows = [row(metric) for _, metric in declared()]
    return "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


def page(text: str) -> str:
    """The page's text with the current table. Raises ValueError if its marks are missing."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE.name} has no marks for its tables")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
