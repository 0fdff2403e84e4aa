"""What the tests of the backfill flow share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.backfill.backfill_world import World
from tests.support.simulation import Simulation


@pytest.fixture
def world(tmp_path: Path, log: str, database: str) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(simulation: Simulation, **settings: Any) -> World:
        made.append(World(tmp_path, log, database, simulation, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
