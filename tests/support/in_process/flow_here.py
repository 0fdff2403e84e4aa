"""A flow in the test's own loop, with what FlowProcess has of one in a process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import REGISTRY

from connectors.runtime.checkpointed import CheckpointedPartition
from connectors.runtime.health import Health
from tests.support.in_process.own_loop import OwnLoop


class FlowHere:
    """Runs from its start until `kill` or `terminate`. `closing`: what a process's end closes, beside the source."""

    def __init__(
        self,
        own: OwnLoop,
        health: Health,
        source: Callable[[], CheckpointedPartition[Any, Any]],
        write: Callable[[list[Any]], None],
        closing: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._own = own
        self._health = health
        self._closing = closing
        self._counted = dict(samples())
        self._source = own.begin(source)
        self._engine = own.engine(self._source, write)

    @property
    def running(self) -> bool:
        return not self._engine.done()

    def health(self) -> dict[str, Any]:
        """The health page."""
        return self._health.page()

    def metric(self, name: str, **labels: str) -> float:
        """By how much the counter's samples with these labels have grown since the start."""
        hits = [(key, value) for key, value in samples() if key[0] == name and labels.items() <= dict(key[1]).items()]
        return sum(value - self._counted.get(key, 0.0) for key, value in hits)

    def kill(self) -> None:
        """End at once, at whatever point it is. What it has claimed stays claimed."""
        self._own.stop(self._engine)
        self._close()

    def terminate(self) -> int:
        """Drain as on SIGTERM, and end; the exit code."""
        self._source._draining = True
        self._source.drain()
        self._own.until(self._engine.done)
        self._close()
        return 0

    def _close(self) -> None:
        self._source.close()
        self._own.pass_time(0.1)
        for close in self._closing:
            close()


def samples() -> list[tuple[tuple[str, frozenset[tuple[str, str]]], float]]:
    """((name, labels), value) of this process's counters."""
    found = itertools.chain.from_iterable(metric.samples for metric in REGISTRY.collect() if metric.type == "counter")
    return [((sample.name, frozenset(sample.labels.items())), sample.value) for sample in found]
