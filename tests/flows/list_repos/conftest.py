"""What the tests of the list_repos flow share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.flows.list_repos.listing_here import Here, ListingHere


@pytest.fixture
def here(database: str) -> Iterator[Here]:
    """`here({"repos": 20, …})`: network and flow in the test's own loop, where time is virtual."""
    made: list[ListingHere] = []

    def make(simulation: dict[str, Any]) -> ListingHere:
        made.append(ListingHere(database, simulation))
        return made[-1]

    yield make
    for one in made:
        one.close()
