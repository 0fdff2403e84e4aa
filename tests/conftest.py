"""One plugin per concern: the servers, the network and the faults that tests are made of."""

import signal

import hypothesis
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in the background ignores Ctrl-C and so would all that we start; the tests are about what it does.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, however slow the machine; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("same")

pytest_plugins = [
    "tests.support.broker",
    "tests.support.postgres",
    "tests.support.settings_fixture",
    "tests.support.simulation",
    "tests.support.tcp_proxy",
    "tests.support.coordinator",
    "tests.support.official.servers",
    "tests.support.official.appview_servers",
    "tests.support.whole_mirror",
    "tests.support.flow_fixtures",
    "tests.support.virtual_time",
    "tests.support.browser",
    "tests.support.served_api",
]


SYSTEMS = 2
"""Groups of whole systems: as many run at the same time, each with a broker, PostgreSQL and ten processes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole systems run in groups, which xdist starts first; what needs official packages, which `make test` installs
    meanwhile, comes last in its group. Only files that share a costly fixture stay together otherwise."""
    systems = [item for item in items if item.get_closest_marker("acceptance") and not item.get_closest_marker("alone")]
    systems.sort(key=lambda item: "official" in item.nodeid)
    for number, item in enumerate(systems):
        item.add_marker(pytest.mark.xdist_group(f"systems-{number % SYSTEMS + 1}"))
    rest = [item for item in items if item not in set(systems)]
    rest.sort(key=lambda item: "official_tables" in getattr(item, "fixturenames", ()))
    items[:] = systems + rest
