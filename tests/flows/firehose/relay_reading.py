"""How far a firehose flow has read a simulated relay."""

from __future__ import annotations

from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import FlowProcess, wait_until
from tests.support.live_flow import LiveBed, LiveFlow
from tests.support.simulation import Simulation

FIRST_SEQ = 1000
# one PDS: nobody migrates, so no key changes between a commit and its late reader
SIZE = {"repos": 40, "records_per_repo": 3, "window": 100_000, "pdses": 1}


def last_seq(simulation: Simulation, relay: int = 0) -> int:
    return int(simulation.summary()["seqs"][relay])


def cursor_of(bed: FlowBed | LiveBed, relay: str) -> int:
    rows = bed.rows("select position::bigint from sluice.cursor where flow = 'firehose' and upstream = %s", relay)
    return int(rows[0][0]) if rows else 0


def reach(bed: FlowBed | LiveBed, flow: FlowProcess | LiveFlow, relay: str, seq: int) -> None:
    """Wait until the cursor of a relay is durable at this seq."""
    wait_until(lambda: cursor_of(bed, relay) >= seq, what=f"cursor of {relay} at {seq}", of=[flow])


def seqs(bed: FlowBed | LiveBed, relay: str) -> list[int]:
    return [value["seq"] for _, value in bed.messages("firehose_live") if value["relay"] == relay]
