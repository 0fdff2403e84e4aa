"""The labels flow as a process, on the simulated labelers, the real broker and the real database."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import wait_until
from tests.support.simulation import Simulation
from tests.support.size import sized

Start = Callable[..., Simulation]
SIZE: dict[str, Any] = {"repos": 30, "records_per_repo": 2}
LABELS = sized(900, 3000)


def cursor_of(bed: FlowBed, labeler: str) -> int:
    rows = bed.rows("select position::bigint from sluice.cursor where flow = 'labels' and upstream = %s", labeler)
    return int(rows[0][0]) if rows else 0


def newest(bed: FlowBed) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """The label of the greatest cts per (src, uri, val, cid), as the index will keep it."""
    found: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for _, value in sorted(bed.messages("label_live"), key=lambda pair: pair[1]["cts"]):
        found[value["src"], value["uri"], value["val"], value.get("cid", "")] = value
    return found


def truth(network: Simulation) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    return {(one["src"], one["uri"], one["val"], one.get("cid", "")): one for one in network.labels()}


def same(bed: FlowBed, network: Simulation) -> bool:
    here, there = newest(bed), truth(network)
    return here.keys() == there.keys() and all(
        (here[key].get("neg", False), here[key]["cts"]) == (there[key].get("neg", False), there[key]["cts"])
        for key in there
    )


def test_the_whole_history_of_every_labeler_is_read_and_kept_up_with(simulator: Start, flow_bed: FlowBed) -> None:
    """B5: several labelers, cursors of their own, negation, expiry, signatures kept."""
    network = simulator(**SIZE, labelers=2, labels=300)
    flow = flow_bed.start("labels", plc=network.plc, labelers=network.labelers)
    wait_until(lambda: all(cursor_of(flow_bed, labeler) >= 300 for labeler in network.labelers))
    assert same(flow_bed, network)
    labels = newest(flow_bed)
    assert {label["src"] for label in labels.values()} == set(network.labeler_dids)
    assert any(label.get("neg") for label in labels.values())
    assert any(label.get("exp") for label in labels.values())
    assert all(len(label["sig"]) == len(b64encode(bytes(64)).rstrip(b"=")) for label in labels.values())
    subjects = {
        (key, value["uri"].removeprefix("at://").split("/")[0]) for key, value in flow_bed.messages("label_live")
    }
    assert {key == of for key, of in subjects if of.startswith("did:")} == {True}
    # web pages and AT-URIs with a handle are kept too, under a hash
    assert {key.startswith("uri:") for key, of in subjects if not of.startswith("did:")} == {True}
    assert {of.partition(":")[0] == "https" for _, of in subjects if not of.startswith("did:")} == {True, False}
    assert flow.terminate() == 0


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
    for _ in range(3):
        flow = flow_bed.start("labels", plc=network.plc, labelers=[labeler])
        before = cursor_of(flow_bed, labeler)
        wait_until(lambda before=before: cursor_of(flow_bed, labeler) > before)
        flow.kill()
        durable = cursor_of(flow_bed, labeler)
        assert durable < LABELS, "it was killed in the middle"
        assert set(range(1, durable + 1)) <= {value["seq"] for _, value in flow_bed.messages("label_live")}
    network.set_faults(**faults)
    flow = flow_bed.start("labels", plc=network.plc, labelers=[labeler])
    wait_until(lambda: cursor_of(flow_bed, labeler) >= LABELS, 180)  # each cut has its back-off
    assert all(network.fired(name) for name in faults)
    assert same(flow_bed, network)
    assert {value["reason"] for _, value in flow_bed.messages("dead_letter")} <= {"undecodable"}
    assert flow.terminate() == 0


def test_a_label_that_is_none_is_a_dead_letter_beside_its_good_neighbours(simulator: Start, flow_bed: FlowBed) -> None:
    """G7"""
    network = simulator(**SIZE, labels=5)
    (labeler,) = network.labelers
    did = next(iter(network.state()))
    network.op("label", uri="no subject", val="spam")
    network.op("label", uri=did, val="late")
    flow = flow_bed.start("labels", plc=network.plc, labelers=[labeler])
    wait_until(lambda: any(value["val"] == "late" for _, value in flow_bed.messages("label_live")))
    # one batch, two topics: the broker may have one of them later
    (letter,) = wait_until(lambda: [value for _, value in flow_bed.messages("dead_letter")])
    assert letter["reason"] == "bad_uri"
    assert labeler in letter["topic"]
    assert flow.terminate() == 0


def test_labels_that_their_labeler_did_not_sign_are_named_and_kept_out(simulator: Start, flow_bed: FlowBed) -> None:
    """B5, N1: a false signature, a foreign source, and a labeler read at a URL that its document does not name."""
    network = simulator(**SIZE, labelers=2, labels=50)
    network.set_faults(label_bad_sig={"times": 2}, label_foreign_src={"times": 2})
    for _ in range(4):
        network.op("label", uri="did:plc:ewvi7nxzyoun6zhxrhs64oiz", val="true")
    assert (network.fired("label_bad_sig"), network.fired("label_foreign_src")) == (2, 2)
    elsewhere = network.labelers[1].replace("127.0.0.1", "localhost")
    flow = flow_bed.start("labels", plc=network.plc, labelers=[network.labelers[0], elsewhere])
    wait_until(lambda: cursor_of(flow_bed, network.labelers[0]) >= 58 and cursor_of(flow_bed, elsewhere) >= 50)
    reasons = Counter(
        value["reason"] for _, value in flow_bed.messages("dead_letter") if elsewhere not in value["topic"]
    )
    assert reasons == {"bad_signature": 2, "no_key": 2}
    assert {v["reason"] for _, v in flow_bed.messages("dead_letter") if elsewhere in v["topic"]} == {"bad_src"}
    labels = newest(flow_bed)
    assert {label["src"] for label in labels.values()} == {network.labeler_dids[0]}
    assert {key for key in labels if key[2] in ("forged", "foreign")} == set()
    assert labels.keys() == {key for key in truth(network) if key[0] == network.labeler_dids[0]}
    assert flow.terminate() == 0
