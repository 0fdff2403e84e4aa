"""One plugin per concern: the servers, the network and the faults that tests are made of."""

import os
import signal

import hypothesis
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in the background ignores Ctrl-C and so would all that we start; the tests are about what it does.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The processes of a test keep their compiled modules: without them each start takes twice the CPU time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The same examples in every run, however slow the machine; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("same")

pytest_plugins = [
    "tests.support.broker",
    "tests.support.postgres",
    "tests.support.settings_fixture",
    "tests.support.shard_databases",
    "tests.support.simulation",
    "tests.support.tcp_proxy",
    "tests.support.coordinator",
    "tests.support.official.servers",
    "tests.support.official.appview_servers",
    "tests.support.whole_mirror",
    "tests.support.flow_fixtures",
    "tests.support.live_flow",
    "tests.support.virtual_time",
    "tests.support.browser",
    "tests.support.served_api",
]


LONG = (
    "tests/system/endurance/",
    "test_up.py",
    "/test_official_",
    "tests/system/",
    "test_filtered_mirror.py",
)
"""Files that run whole systems, in this order: the longest first."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the short files evenly between the long ones: at any time some workers compute, and others wait.

    Files that need official packages, which `make test` installs meanwhile, come last.
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    last = [name for name, those in files.items() if any("official_tables" in fixtures_of(item) for item in those)]
    long = sorted((name for name in files if rank(name) < len(LONG) and name not in last), key=rank)
    short = [name for name in files if name not in long and name not in last]
    share = len(short) / max(1, len(long))
    order = short if not long else []
    for number, name in enumerate(long):
        order += [name, *short[round(number * share) : round((number + 1) * share)]]
    items[:] = [item for name in (*order, *last) for item in files[name]]


def rank(name: str) -> int:
    return next((at for at, part in enumerate(LONG) if part in name), len(LONG))


def fixtures_of(item: pytest.Item) -> tuple[str, ...]:
    return tuple(getattr(item, "fixturenames", ()))
