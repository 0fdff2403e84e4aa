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


ORDER = (
    "tests/system/endurance/",
    "tests/system/",
    "test_up.py",
    "tests/filters/",
    "tests/flows/",
    "/test_official_",
    "tests/",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that several workers end together; files that need official packages, which `make test`
    installs meanwhile, come later, and the short ones of them last."""
    files = {file_of(item) for item in items if "official_tables" in getattr(item, "fixturenames", ())}

    def rank(item: pytest.Item) -> int:
        if file_of(item) in files:
            return len(ORDER)
        return next(at for at, part in enumerate(ORDER) if part in file_of(item))

    items.sort(key=rank)


def file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
