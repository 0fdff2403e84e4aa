"""Commands beside a running `sluice up` need no flags: processes.json says where everything is, and which network it is."""

import os
from pathlib import Path

import pytest

from cli.base import located
from control.process_status import Registry


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of an `up --simulate` that this process plays."""
    for name in [name for name in os.environ if name.startswith("SLUICE_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "simulated"
    folder.mkdir()
    Registry(
        up=os.getpid(),
        bootstrap="127.0.0.1:9092",
        database="postgresql://sluice@127.0.0.1/sluice",
        topic_prefix="p-",
        partitions=8,
        replication=1,
        processes=[],
        relays=["http://127.0.0.1:2583"],
        labelers=["http://127.0.0.1:2584"],
        plc="http://127.0.0.1:2582",
        dns="127.0.0.1:5353",
        allow_private_hosts=True,
    ).write(folder)
    return tmp_path


def test_a_command_finds_the_directory_of_the_network_that_runs(running: Path) -> None:
    """`sluice audit --against-pds` beside `sluice up --simulate`."""
    settings = located(running, "database")
    assert (settings.plc, settings.handle_dns, settings.allow_private_hosts) == (
        "http://127.0.0.1:2582",
        "127.0.0.1:5353",
        True,
    )
    assert (settings.relays, settings.labelers) == (["http://127.0.0.1:2583"], ["http://127.0.0.1:2584"])
    assert (settings.kafka_topic_prefix, settings.kafka_partitions, settings.kafka_replication) == ("p-", 8, 1)


def test_what_was_set_by_hand_stays(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_PLC", "https://plc.example.com")
    monkeypatch.setenv("SLUICE_ALLOW_PRIVATE_HOSTS", "false")
    settings = located(running, "database")
    assert (settings.plc, settings.allow_private_hosts) == ("https://plc.example.com", False)
