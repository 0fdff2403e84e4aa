"""The model's database and the real one are the same: what the model proves of the one holds for the other."""

from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

from tests.model import gate_model
from tests.model.model_profile import FILTERED, LISTED, PRUNED
from tests.model.model_sql import SqlTables, Twin
from tests.model.test_gate_model import FAULTS
from tests.support.size import sized

SHARE = 100  # of the schedules of the model, one in so many is played on PostgreSQL too
PLAIN = (
    *(952, 1348, 242, 1355, 31, 305, 455, 125, 416, 911, 49, 482, 601, 12, 829, 265, 401, 447, 167, 501, 547, 717, 838),
    *(910, 202, 243, 334, 574, 620, 670, 727, 811, 918, 968, 55, 358, 591, 1047, 1214),
)
"""Seeds of 1,500 that together have every kind of change that any of these has: operation, phase and reason before and after."""


@pytest.fixture
def sql(database: str) -> Iterator[SqlTables]:
    tables = SqlTables(database)
    yield tables
    tables.close()


def chosen(schedules: int) -> Iterator[tuple[int, Mapping[str, float] | None]]:
    """Seeds and focus: in `make test` few schedules that differ much, in `make test-long` many as well."""
    yield from ((seed, None) for seed in PLAIN)
    yield from ((seed, FILTERED) for seed in (90, 121))
    yield 26, LISTED
    yield from ((seed, PRUNED) for seed in (11, 56, 67, 80))
    yield from sized([], [(seed, None) for seed in range(max(100, schedules // SHARE))])


@pytest.mark.timeout(1200)
def test_schedules_leave_the_same_rows_in_postgresql(sql: SqlTables, schedules: int) -> None:
    """G1, P2, C1, C2, N9: claims, reaping, buffered events, outcomes, filters and offsets, transaction by transaction."""
    fired: Counter[str] = Counter()
    compared = 0
    for seed, focus in chosen(schedules):
        twin = Twin(sql)
        fired.update(gate_model.run(seed, tables=twin, focus=focus).fired)
        compared += twin.compared
    assert compared > 1000
    missing = FAULTS - {name for name, count in fired.items() if count}
    assert not missing, f"these faults never fired: {missing}"
