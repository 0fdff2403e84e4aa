"""What a labels flow has read of the simulated labelers."""

from __future__ import annotations

from typing import Any

from tests.support.flow_fixtures import FlowBed
from tests.support.live_flow import LiveBed
from tests.support.simulation import Simulation

SIZE: dict[str, Any] = {"repos": 30, "records_per_repo": 2}


def cursor_of(bed: FlowBed | LiveBed, labeler: str) -> int:
    rows = bed.rows("select position::bigint from sluice.cursor where flow = 'labels' and upstream = %s", labeler)
    return int(rows[0][0]) if rows else 0


def newest(bed: FlowBed | LiveBed) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """The label of the greatest cts per (src, uri, val, cid), as the index will keep it."""
    found: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for _, value in sorted(bed.messages("label_live"), key=lambda pair: pair[1]["cts"]):
        found[value["src"], value["uri"], value["val"], value.get("cid", "")] = value
    return found


def truth(network: Simulation) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    return {(one["src"], one["uri"], one["val"], one.get("cid", "")): one for one in network.labels()}


def same(bed: FlowBed | LiveBed, network: Simulation) -> bool:
    here, there = newest(bed), truth(network)
    return here.keys() == there.keys() and all(
        (here[key].get("neg", False), here[key]["cts"]) == (there[key].get("neg", False), there[key]["cts"])
        for key in there
    )
