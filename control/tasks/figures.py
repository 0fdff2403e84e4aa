"""History of the mirror's figures in `sluice.figure`: the leading control process writes a row every EVERY_SECONDS.

Rows hold totals, so that rates come from any two of them. They are kept for KEPT_SECONDS: 8,640 rows of some hundred bytes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from control.status import END_PHASES, Collector, MirrorStatus
from control.tasks.shared_offsets import SharedOffsets
from schemas.settings import Settings
from schemas.sql import Statement, queries

SQL = queries("control")
EVERY_SECONDS = 20.0
KEPT_SECONDS = 172_800.0
POINTS = 300
RATES = ("repos", "records", "events")

Series = dict[str, list[float | None]]


class FigureWriter:
    """Collects the status with a connection of its own to the database."""

    def __init__(self, settings: Settings, offsets: SharedOffsets | None = None) -> None:
        self._collector = Collector(settings, offsets)

    def step(self, db: psycopg.Connection[Any]) -> None:
        """Write a row, and remove those that are too old. Raises psycopg.Error and LogUnavailable."""
        db.execute(SQL["add_figures"], {"figures": Jsonb(totals(self._collector.collect()))})
        db.execute(SQL["prune_figures"], {"seconds": KEPT_SECONDS})


def totals(status: MirrorStatus) -> dict[str, int]:
    """The figures of a row. Repos are those that are done with."""
    lags: Counter[str] = Counter()
    for (_, topic), lag in status.lag.items():
        lags[f"lag {topic}"] += lag
    done = sum(status.repos[phase] for phase in END_PHASES)
    return {"repos": done, "records": status.records, "events": status.events, **lags}


def read_history(
    rows: Callable[[Statement, dict[str, Any]], Sequence[Mapping[str, Any]]], seconds: float
) -> tuple[list[float], Series]:
    """The last `seconds` in at most about POINTS points: (Unix times, figure → values). Raises psycopg.Error."""
    step = max(EVERY_SECONDS, seconds / POINTS)
    found = rows(SQL["figures"], {"seconds": seconds + step, "step": step})
    return series([(row["at"], row["figures"]) for row in found], longest=3 * step)


def series(rows: Sequence[tuple[float, Mapping[str, float]]], longest: float) -> tuple[list[float], Series]:
    """Totals → rates per second. A gap above `longest` seconds is a point without values: nothing was measured."""
    names = dict.fromkeys(name for _, figures in rows for name in figures)
    times: list[float] = []
    found: Series = {name: [] for name in names}
    for (before, old), (at, new) in pairwise(rows):
        times.append(at)
        for name, values in found.items():
            values.append(_value(name, old, new, at - before) if at - before <= longest else None)
    return times, found


def _value(name: str, old: Mapping[str, float], new: Mapping[str, float], seconds: float) -> float | None:
    if name not in RATES:
        return new.get(name)
    # estimates and a new log may go back
    return max(0.0, (new[name] - old[name]) / seconds) if name in new and name in old else None
