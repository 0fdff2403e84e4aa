"""The firehose flow on the simulated relays and the real database, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from connectors.postgres.stream_cursors import CursorUnreadable
from schemas import wire
from tests.flows.firehose.relay_reading import FIRST_SEQ, SIZE, cursor_of, last_seq, reach, seqs
from tests.support.flow_process import wait_until
from tests.support.live_flow import LiveBed
from tests.support.simulation import Simulation
from tests.support.tcp_proxy import Proxy

Start = Callable[..., Simulation]


def test_sigterm_drains_and_a_restart_repeats_nothing(simulator: Start, live_bed: LiveBed) -> None:
    """G8"""
    network = simulator(**SIZE, writer_rate=200)
    (relay,) = network.relays
    for _ in range(3):
        flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
        before = cursor_of(live_bed, relay)
        wait_until(lambda before=before: cursor_of(live_bed, relay) > before + 20)
        assert flow.terminate() == 0
    found = seqs(live_bed, relay)
    assert sorted(found) == list(range(FIRST_SEQ, cursor_of(live_bed, relay) + 1))


def test_every_message_has_the_content_of_its_frame_and_the_key_of_its_did(simulator: Start, live_bed: LiveBed) -> None:
    """B4: every event kind."""
    network = simulator(**SIZE)
    (relay,) = network.relays
    active = [repo.did for repo in network.state().values() if repo.active]
    network.op("create", did=active[0])
    network.op("sync", did=active[1])
    network.op("handle", did=active[2])
    network.op("deactivate", did=active[3])
    network.op("activate", did=active[3])
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    reach(live_bed, flow, relay, last_seq(network))
    messages = live_bed.messages("firehose_live")
    for message in live_bed.log.read("firehose_live"):
        event = wire.decode_live(message.value())
        assert message.out.key == event.did
        assert len(event.time) == 24
    truth = network.state()
    by_type: dict[str, list[dict[str, Any]]] = {}
    for _, value in messages:
        by_type.setdefault(value["type"], []).append(value)
    assert set(by_type) == {"commit", "sync", "identity", "account"}
    commit = next(value for value in by_type["commit"] if value["did"] == active[0])
    (op,) = commit["ops"]
    assert truth[active[0]].records[f"{op['collection']}/{op['rkey']}"] == op["cid"]
    assert (commit["data"], commit["rev"]) == (truth[active[0]].data, truth[active[0]].rev)
    assert op["record"]
    assert [value.get("status") for value in by_type["account"] if value["did"] == active[3]] == ["deactivated", None]


def test_two_relays_bring_every_event_once(simulator: Start, live_bed: LiveBed) -> None:
    """B4: several relays at once with their duplicates removed, a cursor each. An #account of each is kept."""
    network = simulator(**SIZE, relays=2, writer_rate=200)
    flow = live_bed.start("firehose", plc=network.plc, relays=network.relays, firehose_start="oldest")
    wait_until(lambda: all(cursor_of(live_bed, relay) > 0 for relay in network.relays))
    written = last_seq(network)
    wait_until(lambda: last_seq(network) > written + 50, what="the writer writes on")
    network.quiesce()
    for number, relay in enumerate(network.relays):
        reach(live_bed, flow, relay, last_seq(network, number))
    events = [
        (value["type"], key, value.get("rev") or (value["time"], value.get("active"), value.get("handle")))
        for key, value in live_bed.messages("firehose_live")
    ]
    accounts = [event for event in events if event[0] == "account"]
    assert sorted(accounts) == sorted([*set(accounts)] * 2)
    assert len(events) - len(accounts) // 2 == len(set(events)) == last_seq(network) - FIRST_SEQ + 1
    assert flow.metric("sluice_dropped_events_total", reason="duplicate") == len(events) - len(accounts)


def test_a_stream_full_of_faults_loses_nothing_and_stops_nothing(simulator: Start, live_bed: LiveBed) -> None:
    """G7, B8: dropped sockets, garbage, unknown types, error frames, duplicates."""
    network = simulator(**SIZE, writer_rate=150)
    (relay,) = network.relays
    faults = {"drop": 0.01, "garbage": 0.03, "unknown_type": 0.03, "error_frame": 0.01, "duplicate": 0.1}
    network.set_faults(**faults)
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: all(network.fired(name) >= 2 for name in faults), what="every fault fired twice")
    # what was sent and lost with its socket is not among these
    wait_until(lambda: live_bed.messages("dead_letter"), what="garbage that arrived")
    wait_until(lambda: flow.metric("sluice_dropped_events_total", reason="unknown_type") >= 1)
    network.set_faults(clear=True)
    network.quiesce()
    reach(live_bed, flow, relay, last_seq(network))
    assert set(seqs(live_bed, relay)) == set(range(FIRST_SEQ, last_seq(network) + 1))
    letters = live_bed.messages("dead_letter")
    assert letters
    assert {value["reason"] for _, value in letters} == {"undecodable"}
    # what was sent as garbage and lost with its socket comes to nothing
    assert len(letters) <= network.fired("garbage")
    assert flow.metric("sluice_dropped_events_total", reason="unknown_type") >= 1
    wait_until(lambda: flow.health()["state"] == "idle")
    assert flow.terminate() == 0


def test_a_connected_but_silent_stream_is_noticed(simulator: Start, live_bed: LiveBed) -> None:
    """B8: the watchdog looks at data, not at pings."""
    network = simulator(**SIZE, writer_rate=50)
    (relay,) = network.relays
    settings: dict[str, Any] = {
        "plc": network.plc,
        "relays": [relay],
        "firehose_start": "oldest",
        "stream_silence_seconds": 1.0,
    }
    flow = live_bed.start("firehose", **settings)
    wait_until(lambda: cursor_of(live_bed, relay) > FIRST_SEQ)
    network.set_faults(silence={"times": 1})
    wait_until(lambda: network.fired("silence") == 1)
    wait_until(lambda: flow.metric("sluice_upstream_errors_total", reason="silence") >= 1)
    network.quiesce()
    reach(live_bed, flow, relay, last_seq(network))
    assert set(seqs(live_bed, relay)) == set(range(FIRST_SEQ, last_seq(network) + 1))


def test_a_cursor_from_the_future_is_failing_with_its_remedy_and_not_silent(
    simulator: Start, live_bed: LiveBed
) -> None:
    """A relay whose sequence restarted."""
    network = simulator(**SIZE, writer_rate=50)
    (relay,) = network.relays
    live_bed.rows(
        "insert into sluice.cursor (flow, upstream, position) values ('firehose', %s, '9999999') returning 1", relay
    )
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay])
    health = wait_until(lambda: (page := flow.health())["state"] == "failing" and page)
    assert "FutureCursor" in health["why"]
    assert "sluice cursors" in health["why"]
    states = set()

    def tried_again() -> bool:
        states.add(flow.health()["state"])
        return flow.metric("sluice_upstream_errors_total", reason="FutureCursor") > 1

    wait_until(tried_again)
    assert states == {"failing"}  # no flapping while it tries again
    assert cursor_of(live_bed, relay) == 9_999_999
    assert flow.terminate() == 0


def test_a_relay_that_restarts_its_sequence_silently_is_followed(simulator: Start, live_bed: LiveBed) -> None:
    """G8: it ignores the old cursor and goes on at its tip. The loss is a gap, and no later reconnect loses again."""
    network = simulator(**SIZE)
    (relay,) = network.relays
    active = [repo.did for repo in network.state().values() if repo.active]
    network.streams(relay=0, future=False)
    live_bed.rows(
        "insert into sluice.cursor (flow, upstream, position) values ('firehose', %s, '9999999') returning 1", relay
    )
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay])
    wait_until(lambda: flow.metric("sluice_websocket_connections") == 1)
    first = last_seq(network) + 1
    wait_until(
        lambda: network.op("create", did=active[0]) and seqs(live_bed, relay)
    )  # until one comes after the reader
    wait_until(lambda: first <= cursor_of(live_bed, relay) <= last_seq(network), what="a cursor of the new sequence")
    assert flow.metric("sluice_upstream_errors_total", reason="sequence_restarted") == 1
    assert live_bed.rows("select reason, from_seq, to_seq, answered_at from sluice.stream_gap") == [
        ("sequence_restarted", None, None, None)
    ]
    assert "sequence restarted" in flow.story()

    network.set_faults(drop={"times": 1})  # a reconnect of the same process
    for did in active[1:4]:
        network.op("create", did=did)
    reach(live_bed, flow, relay, last_seq(network))
    assert network.fired("drop") == 1
    assert flow.terminate() == 0
    for did in active[4:8]:
        network.op("create", did=did)
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay])  # and of the next one
    reach(live_bed, flow, relay, last_seq(network))
    found = seqs(live_bed, relay)
    assert set(range(min(found), last_seq(network) + 1)) == set(found)
    assert live_bed.rows("select count(*) from sluice.stream_gap") == [(1,)]


def test_lost_sequence_numbers_are_recorded_before_the_cursor_passes_them(simulator: Start, live_bed: LiveBed) -> None:
    """A window that was passed, announced or not, and holes within the stream."""
    network = simulator(**SIZE)
    (relay,) = network.relays
    active = [repo.did for repo in network.state().values() if repo.active]
    network.op("create", did=active[0])
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    reach(live_bed, flow, relay, last_seq(network))
    assert flow.terminate() == 0
    stopped_at = last_seq(network)
    for did in active[:20]:
        network.op("create", did=did)
    network.streams(relay=0, window=3)
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay])
    reach(live_bed, flow, relay, last_seq(network))
    network.set_faults(seq_gap={"times": 1, "gap": 7})
    network.op("create", did=active[1])
    reach(live_bed, flow, relay, last_seq(network))
    assert network.fired("seq_gap") == 1
    rows = live_bed.rows("select reason, from_seq, to_seq, answered_at from sluice.stream_gap order by reason")
    assert [row[0] for row in rows] == ["outdated_cursor", "sequence_gap"]
    # one unanswered row grows: the window that was passed and the hole after it
    assert rows[1][1:] == (stopped_at + 1, last_seq(network) - 1, None)
    assert flow.metric("sluice_sequence_gaps_total") == 3
    assert flow.metric("sluice_sequence_gap_missed_seqs_total") == 17 + 7


def test_a_relay_that_is_back_and_quiet_is_no_failure(
    simulator: Start, live_bed: LiveBed, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B8, R3: the health page names what is wrong, and no longer than it is: a labeler may have no word for hours."""
    monkeypatch.setattr("connectors.atproto.stream_sockets.RECOVERED_SECONDS", 1.0)
    network = simulator(**SIZE)
    host, _, port = network.relays[0].removeprefix("http://").partition(":")
    way = proxy((host, int(port)))
    way.refuse()
    relay = f"http://{way.address}"
    flow = live_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: (page := flow.health())["state"] == "failing" and relay in page["why"])
    way.restore()
    wait_until(lambda: flow.health()["state"] == "idle")
    assert seqs(live_bed, relay) == []
    assert flow.terminate() == 0


def test_no_private_relay_is_read_unless_allowed(simulator: Start, live_bed: LiveBed) -> None:
    """G9"""
    network = simulator(**SIZE)
    flow = live_bed.start("firehose", plc=network.plc, relays=network.relays, allow_private_hosts=False)
    page = wait_until(lambda: (page := flow.health())["state"] == "failing" and page)
    assert "scheme" in page["why"]
    assert flow.terminate() == 0


@pytest.mark.parametrize("text", ["", "-5", "12x"])
def test_an_invalid_cursor_is_refused_with_its_remedy(live_bed: LiveBed, text: str) -> None:
    relay = "http://127.0.0.1:2"
    live_bed.rows(
        "insert into sluice.cursor (flow, upstream, position) values ('firehose', %s, %s) returning 1", relay, text
    )
    with pytest.raises(CursorUnreadable, match="sluice cursors set firehose"):
        live_bed.start("firehose", plc="http://127.0.0.1:1", relays=[relay])
