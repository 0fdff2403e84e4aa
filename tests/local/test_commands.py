"""The processes of `sluice up`, and what each cannot start with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from local.commands import commands, mirror_command
from local.run import require
from schemas.errors import OperatorError
from schemas.settings import Settings, load

GIVEN: dict[str, Any] = {
    "kafka_bootstrap": "127.0.0.1:1",
    "database": "postgresql://x@y/z",
    "relays": ["https://relay.test"],
}


def firehoses(shares: int) -> list[tuple[str, Sequence[str], str | None]]:
    found = [one for one in commands(Settings(**GIVEN, firehose_shares=shares), 1) if one.kind == "firehose"]
    return [(one.name, one.argv[-2:], one.env.get("SLUICE_FIREHOSE_SHARES")) for one in found]


def test_each_share_of_the_firehose_is_a_process_that_knows_its_number() -> None:
    """S3"""
    assert firehoses(1) == [("firehose", ("--share", "0"), "1")]
    assert firehoses(3) == [(f"firehose-{number + 1}", ("--share", str(number)), "3") for number in range(3)]


def test_a_share_beyond_their_number_does_not_start() -> None:
    """S3: its repos would be read by two processes, or by none."""
    require("firehose", Settings(**GIVEN, firehose_shares=3, firehose_share=2))
    with pytest.raises(OperatorError, match="number the processes from 0 to 2"):
        require("firehose", Settings(**GIVEN, firehose_shares=3, firehose_share=3))


def test_the_line_that_mirrors_a_simulated_network_names_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk of docs/operating.md uses the same words: without the network's DNS no handle is verified."""
    urls = {
        "plc": "http://127.0.0.1:1",
        "dns": "127.0.0.1:2",
        "relays": ["http://127.0.0.1:3"],
        "labelers": ["http://127.0.0.1:4"],
    }
    line = mirror_command(urls)
    words = shlex.split(line)
    for name, _, value in (word.partition("=") for word in words[: words.index("sluice")]):
        monkeypatch.setenv(name, value)
    settings = load()
    assert (settings.handle_dns, settings.allow_private_hosts) == ("127.0.0.1:2", True)
    given = dict(zip(words[-6::2], words[-5::2], strict=True))
    assert given == {"--plc": urls["plc"], "--relay": urls["relays"][0], "--labeler": urls["labelers"][0]}
    walk = (Path(__file__).parents[2] / "docs" / "operating.md").read_text("utf-8")
    shape = re.escape(re.sub(r":\d+", ":N", line))
    assert len(re.findall(shape, re.sub(r":\d+", ":N", walk))) == 2
