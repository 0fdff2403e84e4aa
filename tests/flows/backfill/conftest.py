"""What the tests of the backfill flow share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.backfill.backfill_here import WorldHere
from tests.flows.backfill.backfill_world import World
from tests.support.simulation import Simulation


@pytest.fixture
def world(tmp_path: Path, log: str, database: str) -> Iterator[Callable[..., World]]:
    """`world(simulation, **settings)`: the flow as processes, on the session's broker."""
    made: list[World] = []

    def make(simulation: Simulation, **settings: Any) -> World:
        made.append(World(tmp_path, log, database, simulation, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def here(database: str) -> Iterator[Callable[..., WorldHere]]:
    """`here({"repos": 20, …}, **settings)`: network and flow in the test's own loop, where time is virtual."""
    made: list[WorldHere] = []

    def make(simulation: dict[str, Any], **settings: Any) -> WorldHere:
        made.append(WorldHere(database, simulation, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
