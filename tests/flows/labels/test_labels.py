"""The labels flow on the simulated labelers and the real database, in this process."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable

from tests.flows.labels.label_reading import SIZE, cursor_of, newest, same, truth
from tests.support.flow_process import wait_until
from tests.support.live_flow import LiveBed
from tests.support.simulation import Simulation

Start = Callable[..., Simulation]


def test_the_whole_history_of_every_labeler_is_read_and_kept_up_with(simulator: Start, live_bed: LiveBed) -> None:
    """B5: several labelers, cursors of their own, negation, expiry, signatures kept."""
    network = simulator(**SIZE, labelers=2, labels=300)
    flow = live_bed.start("labels", plc=network.plc, labelers=network.labelers)
    wait_until(lambda: all(cursor_of(live_bed, labeler) >= 300 for labeler in network.labelers))
    assert same(live_bed, network)
    labels = newest(live_bed)
    assert {label["src"] for label in labels.values()} == set(network.labeler_dids)
    assert any(label.get("neg") for label in labels.values())
    assert any(label.get("exp") for label in labels.values())
    assert all(len(label["sig"]) == len(b64encode(bytes(64)).rstrip(b"=")) for label in labels.values())
    subjects = {
        (key, value["uri"].removeprefix("at://").split("/")[0]) for key, value in live_bed.messages("label_live")
    }
    assert {key == of for key, of in subjects if of.startswith("did:")} == {True}
    # web pages and AT-URIs with a handle are kept too, under a hash
    assert {key.startswith("uri:") for key, of in subjects if not of.startswith("did:")} == {True}
    assert {of.partition(":")[0] == "https" for _, of in subjects if not of.startswith("did:")} == {True, False}
    assert flow.terminate() == 0


def test_an_invalid_label_is_a_dead_letter_and_the_labels_beside_it_pass(simulator: Start, live_bed: LiveBed) -> None:
    """G7"""
    network = simulator(**SIZE, labels=5)
    (labeler,) = network.labelers
    did = next(iter(network.state()))
    network.op("label", uri="no subject", val="spam")
    network.op("label", uri=did, val="late")
    flow = live_bed.start("labels", plc=network.plc, labelers=[labeler])
    wait_until(lambda: any(value["val"] == "late" for _, value in live_bed.messages("label_live")))
    # one batch, two topics: the broker may have one of them later
    (letter,) = wait_until(lambda: [value for _, value in live_bed.messages("dead_letter")])
    assert letter["reason"] == "bad_uri"
    assert labeler in letter["topic"]
    assert flow.terminate() == 0


def test_labels_that_their_labeler_did_not_sign_are_named_and_kept_out(simulator: Start, live_bed: LiveBed) -> None:
    """B5, N1: a false signature, a foreign source, and a labeler read at a URL that its document does not name."""
    network = simulator(**SIZE, labelers=2, labels=50)
    network.set_faults(label_bad_sig={"times": 2}, label_foreign_src={"times": 2})
    for _ in range(4):
        network.op("label", uri="did:plc:ewvi7nxzyoun6zhxrhs64oiz", val="true")
    assert (network.fired("label_bad_sig"), network.fired("label_foreign_src")) == (2, 2)
    elsewhere = network.labelers[1].replace("127.0.0.1", "localhost")
    flow = live_bed.start("labels", plc=network.plc, labelers=[network.labelers[0], elsewhere])
    wait_until(lambda: cursor_of(live_bed, network.labelers[0]) >= 58 and cursor_of(live_bed, elsewhere) >= 50)
    reasons = Counter(
        value["reason"] for _, value in live_bed.messages("dead_letter") if elsewhere not in value["topic"]
    )
    assert reasons == {"bad_signature": 2, "no_key": 2}
    assert {v["reason"] for _, v in live_bed.messages("dead_letter") if elsewhere in v["topic"]} == {"bad_src"}
    labels = newest(live_bed)
    assert {label["src"] for label in labels.values()} == {network.labeler_dids[0]}
    assert {key for key in labels if key[2] in ("forged", "foreign")} == set()
    assert labels.keys() == {key for key in truth(network) if key[0] == network.labeler_dids[0]}
    assert flow.terminate() == 0
