"""`pytest tests/model --schedules N`: how many random schedules the gate's model plays."""

import pytest

from tests.support.size import sized

SCHEDULES = sized(1500, 20_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--schedules", type=int, default=SCHEDULES, help="random schedules of the gate's model")


@pytest.fixture
def schedules(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--schedules", default=SCHEDULES))
