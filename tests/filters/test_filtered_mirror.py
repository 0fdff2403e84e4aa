"""A filter that is set and lifted while a whole mirror runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.whole_mirror import Mirror, prefix, wait_for

pytestmark = pytest.mark.acceptance

POST = "app.bsky.feed.post"


def test_a_filter_is_set_while_the_mirror_runs_and_lifted_again(
    simulator: Any, log: str, database: str, mirror: Any
) -> None:
    """N9: running processes follow within seconds, nothing outside is written meanwhile, and afterwards every row is there."""
    simulation = simulator(seed=9, repos=20, records_per_repo=15, labelers=0, inactive_share=0.0, writer_rate=10)
    one: Mirror = mirror(simulation, kafka_bootstrap=log, database=database, kafka_topic_prefix=prefix())

    def sluice(*arguments: str) -> dict[str, Any]:
        done = one.cli("filters", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def outside() -> int:
        return one.query("select count(*) from sluice.record where collection <> %s", POST)[0][0]

    one.up()
    wait_for(lambda: one.alive() and one.phases().get("sync", 0) >= 15, 180, one.last_lines)
    assert outside() > 0
    assert sluice("set", "--collection", POST)["clean"] is False
    assert one.cli("filters", "prune").returncode == 0
    wait_for(lambda: sluice("show")["clean"], 120, one.last_lines)
    assert outside() == 0
    steps = simulation.summary()["steps"]
    wait_for(lambda: simulation.summary()["steps"] > steps + 60, 120)
    wait_for(lambda: one.phases().get("sync", 0) >= 15, 120, one.last_lines)
    assert outside() == 0, "what was written since has no rows"
    assert one.query(f"select count(*) from sluice.record where collection = '{POST}'")[0][0] > 0
    audited = one.cli("audit", "--all", "--json")
    assert (audited.returncode, json.loads(audited.stdout)["unrooted"] > 0) == (0, True), audited.stdout
    sluice("set")
    wait_for(lambda: not sluice("show")["walking"], 120, one.last_lines)
    one.quiesce()
    one.await_truth(120)
    assert one.cli("audit", "--all").returncode == 0
    assert one.interrupt() == 0
