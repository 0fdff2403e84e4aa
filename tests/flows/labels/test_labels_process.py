"""The labels flow as a process, on a simulated labeler, the real broker and the real database."""

from __future__ import annotations

from collections.abc import Callable

from tests.flows.labels.label_reading import SIZE, cursor_of, same
from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import wait_until
from tests.support.simulation import Simulation
from tests.support.size import sized

Start = Callable[..., Simulation]
LABELS = sized(500, 3000)


def test_kill_9_and_faults_lose_no_label(simulator: Start, flow_bed: FlowBed) -> None:
    """G1, G7, G8: killed in the middle of dropped sockets, garbage, unknown types and error frames."""
    network = simulator(**SIZE, labels=LABELS)
    (labeler,) = network.labelers
    faults = {
        "label_drop": {"every": 300},
        "label_garbage": 0.01,
        "label_unknown_type": 0.01,
        "label_error_frame": {"every": 250},
    }
    # while it is to be killed the socket is cut every 20 labels: the whole history takes longer than any slow moment
    network.set_faults(**faults | {"label_drop": {"every": 20}})
    for _ in range(sized(2, 3)):
        flow = flow_bed.start("labels", plc=network.plc, labelers=[labeler])
        before = cursor_of(flow_bed, labeler)
        wait_until(lambda before=before: cursor_of(flow_bed, labeler) > before, of=[flow])
        flow.kill()
        durable = cursor_of(flow_bed, labeler)
        assert durable < LABELS, "it was killed in the middle"
        assert set(range(1, durable + 1)) <= {value["seq"] for _, value in flow_bed.messages("label_live")}
    network.set_faults(**faults)
    flow = flow_bed.start("labels", plc=network.plc, labelers=[labeler])
    wait_until(lambda: cursor_of(flow_bed, labeler) >= LABELS, 180, of=[flow])  # each cut has its back-off
    assert all(network.fired(name) for name in faults)
    assert same(flow_bed, network)
    assert {value["reason"] for _, value in flow_bed.messages("dead_letter")} <= {"undecodable"}
    assert flow.terminate() == 0
