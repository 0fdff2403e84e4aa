"""The firehose flow as a process, on the simulated relays, the real broker and the real database."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from local.embedded.embedded_log import EmbeddedLog
from schemas import wire
from schemas.settings import Settings
from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import FlowProcess, create_topics, read_topic, wait_until
from tests.support.simulation import Simulation
from tests.support.tcp_proxy import Proxy

FIRST_SEQ = 1000
# one PDS: nobody migrates, so no key changes between a commit and its late reader
SIZE = {"repos": 40, "records_per_repo": 3, "window": 100_000, "pdses": 1}

Start = Callable[..., Simulation]


def last_seq(simulation: Simulation, relay: int = 0) -> int:
    return int(simulation.summary()["seqs"][relay])


def cursor_of(bed: FlowBed, relay: str) -> int:
    rows = bed.rows("select position::bigint from sluice.cursor where flow = 'firehose' and upstream = %s", relay)
    return int(rows[0][0]) if rows else 0


def reach(bed: FlowBed, flow: FlowProcess, relay: str, seq: int) -> None:
    """Wait until the cursor of a relay is durable at this seq."""
    wait_until(lambda: cursor_of(bed, relay) >= seq or not flow.running, what=f"cursor of {relay} at {seq}")
    assert flow.running, flow.log_file.read_text()[-3000:]


def seqs(bed: FlowBed, relay: str) -> list[int]:
    return [value["seq"] for _, value in bed.messages("firehose_live") if value["relay"] == relay]


def test_kill_9_at_any_moment_loses_no_event_and_the_cursor_never_passes_the_log(
    simulator: Start, flow_bed: FlowBed
) -> None:
    """G1, G8, B4"""
    network = simulator(**SIZE, writer_rate=80)  # more would only pile up while a slow machine starts the flow
    (relay,) = network.relays
    kills = 0
    for _ in range(4):
        flow = flow_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
        before = cursor_of(flow_bed, relay)
        wait_until(lambda before=before: cursor_of(flow_bed, relay) > before + 30)
        flow.kill()
        kills += 1
        durable = cursor_of(flow_bed, relay)
        assert set(range(FIRST_SEQ, durable + 1)) <= set(seqs(flow_bed, relay))
    network.quiesce()
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    reach(flow_bed, flow, relay, last_seq(network))
    assert flow.terminate() == 0
    assert kills == 4
    assert set(seqs(flow_bed, relay)) == set(range(FIRST_SEQ, last_seq(network) + 1))
    assert flow_bed.rows("select * from sluice.stream_gap") == []
    assert flow_bed.messages("dead_letter") == []
    newest = {key: value["rev"] for key, value in flow_bed.messages("firehose_live") if value["type"] == "commit"}
    truth = network.state()
    assert newest
    assert all(truth[did].rev == rev for did, rev in newest.items())


def test_sigterm_drains_and_a_restart_repeats_nothing(simulator: Start, flow_bed: FlowBed) -> None:
    """G8"""
    network = simulator(**SIZE, writer_rate=200)
    (relay,) = network.relays
    for _ in range(3):
        flow = flow_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
        before = cursor_of(flow_bed, relay)
        wait_until(lambda before=before: cursor_of(flow_bed, relay) > before + 20)
        assert flow.terminate() == 0
    found = seqs(flow_bed, relay)
    assert sorted(found) == list(range(FIRST_SEQ, cursor_of(flow_bed, relay) + 1))


def test_every_message_is_what_the_relay_said_and_keyed_by_its_did(simulator: Start, flow_bed: FlowBed) -> None:
    """B4: every event kind."""
    network = simulator(**SIZE)
    (relay,) = network.relays
    active = [repo.did for repo in network.state().values() if repo.active]
    network.op("create", did=active[0])
    network.op("sync", did=active[1])
    network.op("handle", did=active[2])
    network.op("deactivate", did=active[3])
    network.op("activate", did=active[3])
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    reach(flow_bed, flow, relay, last_seq(network))
    messages = flow_bed.messages("firehose_live")
    for topic_message in read_topic(flow_bed.bootstrap, flow_bed.prefix + "firehose_live"):
        event = wire.decode_live(topic_message.value())
        assert topic_message.key().decode() == event.did
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


def test_two_relays_bring_every_event_once(simulator: Start, flow_bed: FlowBed) -> None:
    """B4: several relays at once with their duplicates removed, a cursor each. An #account of each is kept."""
    network = simulator(**SIZE, relays=2, writer_rate=200)
    flow = flow_bed.start("firehose", plc=network.plc, relays=network.relays, firehose_start="oldest")
    wait_until(lambda: all(cursor_of(flow_bed, relay) > 0 for relay in network.relays))
    time.sleep(1)  # let the writer write; what it wrote is asked for below
    network.quiesce()
    for number, relay in enumerate(network.relays):
        reach(flow_bed, flow, relay, last_seq(network, number))
    events = [
        (value["type"], key, value.get("rev") or (value["time"], value.get("active"), value.get("handle")))
        for key, value in flow_bed.messages("firehose_live")
    ]
    accounts = [event for event in events if event[0] == "account"]
    assert sorted(accounts) == sorted([*set(accounts)] * 2)
    assert len(events) - len(accounts) // 2 == len(set(events)) == last_seq(network) - FIRST_SEQ + 1
    assert flow.metric("sluice_dropped_events_total", reason="duplicate") == len(events) - len(accounts)


def test_a_stream_full_of_faults_loses_nothing_and_stops_nothing(simulator: Start, flow_bed: FlowBed) -> None:
    """G7, B8: dropped sockets, garbage, unknown types, error frames, duplicates."""
    network = simulator(**SIZE, writer_rate=150)
    (relay,) = network.relays
    faults = {"drop": 0.01, "garbage": 0.03, "unknown_type": 0.03, "error_frame": 0.01, "duplicate": 0.1}
    network.set_faults(**faults)
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: all(network.fired(name) >= 2 for name in faults), what="every fault fired twice")
    network.set_faults(clear=True)
    network.quiesce()
    reach(flow_bed, flow, relay, last_seq(network))
    assert set(seqs(flow_bed, relay)) == set(range(FIRST_SEQ, last_seq(network) + 1))
    letters = flow_bed.messages("dead_letter")
    assert letters
    assert {value["reason"] for _, value in letters} == {"undecodable"}
    # what was sent as garbage and lost with its socket comes to nothing
    assert len(letters) <= network.fired("garbage")
    assert flow.metric("sluice_dropped_events_total", reason="unknown_type") >= 1
    wait_until(lambda: flow.health()["state"] == "idle")
    assert flow.terminate() == 0


def test_a_connected_but_silent_stream_is_noticed(simulator: Start, flow_bed: FlowBed) -> None:
    """B8: the watchdog looks at data, not at pings."""
    network = simulator(**SIZE, writer_rate=50)
    (relay,) = network.relays
    settings: dict[str, Any] = {
        "plc": network.plc,
        "relays": [relay],
        "firehose_start": "oldest",
        "stream_silence_seconds": 1.0,
    }
    flow = flow_bed.start("firehose", **settings)
    wait_until(lambda: cursor_of(flow_bed, relay) > FIRST_SEQ)
    network.set_faults(silence={"times": 1})
    wait_until(lambda: network.fired("silence") == 1)
    wait_until(lambda: flow.metric("sluice_upstream_errors_total", reason="silence") >= 1)
    network.quiesce()
    reach(flow_bed, flow, relay, last_seq(network))
    assert set(seqs(flow_bed, relay)) == set(range(FIRST_SEQ, last_seq(network) + 1))


def test_a_cursor_from_the_future_is_failing_with_its_remedy_and_not_silent(
    simulator: Start, flow_bed: FlowBed
) -> None:
    """A relay whose sequence restarted."""
    network = simulator(**SIZE, writer_rate=50)
    (relay,) = network.relays
    flow_bed.rows(
        "insert into sluice.cursor (flow, upstream, position) values ('firehose', %s, '9999999') returning 1", relay
    )
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay])
    health = wait_until(lambda: (page := flow.health())["state"] == "failing" and page)
    assert "FutureCursor" in health["why"]
    assert "sluice cursors" in health["why"]
    time.sleep(2)
    assert flow.health()["state"] == "failing"  # no flapping while it tries again
    assert 1 <= flow.metric("sluice_upstream_errors_total", reason="FutureCursor") < 10
    assert cursor_of(flow_bed, relay) == 9_999_999
    assert flow.terminate() == 0


def test_a_relay_that_counts_anew_without_a_word_is_followed(simulator: Start, flow_bed: FlowBed) -> None:
    """G8: it ignores the old cursor and goes on at its tip. The loss is a gap, and no later reconnect loses again."""
    network = simulator(**SIZE)
    (relay,) = network.relays
    active = [repo.did for repo in network.state().values() if repo.active]
    network.streams(relay=0, future=False)
    flow_bed.rows(
        "insert into sluice.cursor (flow, upstream, position) values ('firehose', %s, '9999999') returning 1", relay
    )
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay])
    wait_until(lambda: flow.metric("sluice_websocket_connections") == 1)
    first = last_seq(network) + 1
    wait_until(
        lambda: network.op("create", did=active[0]) and seqs(flow_bed, relay)
    )  # until one comes after the reader
    wait_until(lambda: first <= cursor_of(flow_bed, relay) <= last_seq(network), what="a cursor of the new sequence")
    assert flow.metric("sluice_upstream_errors_total", reason="sequence_restarted") == 1
    assert flow_bed.rows("select reason, from_seq, to_seq, answered_at from sluice.stream_gap") == [
        ("sequence_restarted", None, None, None)
    ]
    assert "sequence restarted" in flow.log_file.read_text()

    network.set_faults(drop={"times": 1})  # a reconnect of the same process
    for did in active[1:4]:
        network.op("create", did=did)
    reach(flow_bed, flow, relay, last_seq(network))
    assert network.fired("drop") == 1
    assert flow.terminate() == 0
    for did in active[4:8]:
        network.op("create", did=did)
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay])  # and of the next one
    reach(flow_bed, flow, relay, last_seq(network))
    found = seqs(flow_bed, relay)
    assert set(range(min(found), last_seq(network) + 1)) == set(found)
    assert flow_bed.rows("select count(*) from sluice.stream_gap") == [(1,)]


def test_lost_sequence_numbers_are_recorded_before_the_cursor_passes_them(simulator: Start, flow_bed: FlowBed) -> None:
    """A window that was passed, announced or not, and holes within the stream."""
    network = simulator(**SIZE)
    (relay,) = network.relays
    active = [repo.did for repo in network.state().values() if repo.active]
    network.op("create", did=active[0])
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    reach(flow_bed, flow, relay, last_seq(network))
    assert flow.terminate() == 0
    stopped_at = last_seq(network)
    for did in active[:20]:
        network.op("create", did=did)
    network.streams(relay=0, window=3)
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay])
    reach(flow_bed, flow, relay, last_seq(network))
    network.set_faults(seq_gap={"times": 1, "gap": 7})
    network.op("create", did=active[1])
    reach(flow_bed, flow, relay, last_seq(network))
    assert network.fired("seq_gap") == 1
    rows = flow_bed.rows("select reason, from_seq, to_seq, answered_at from sluice.stream_gap order by reason")
    assert [row[0] for row in rows] == ["outdated_cursor", "sequence_gap"]
    # one unanswered row grows: the window that was passed and the hole after it
    assert rows[1][1:] == (stopped_at + 1, last_seq(network) - 1, None)
    assert flow.metric("sluice_sequence_gaps_total") == 3
    assert flow.metric("sluice_sequence_gap_missed_seqs_total") == 17 + 7


def test_back_pressure_pauses_says_so_and_resumes_without_loss(simulator: Start, flow_bed: FlowBed) -> None:
    """B7: the mark of the live topic is an age, a share of its retention (7 days, here to 1.5 s of it)."""
    network = simulator(**SIZE, writer_rate=100)
    (relay,) = network.relays
    fraction = 1.5 / (7 * 86400)
    flow = flow_bed.start(
        "firehose", plc=network.plc, relays=[relay], firehose_start="oldest", live_high_water_fraction=fraction
    )
    page = wait_until(lambda: (page := flow.health())["state"] == "paused" and page)
    assert "messages of" in page["why"]
    assert flow.metric("sluice_backpressure_active") == 1
    stood_at = wait_until(lambda: cursor_of(flow_bed, relay))
    written = last_seq(network)
    wait_until(lambda: last_seq(network) > written + 20, what="the network goes on while the flow does not")
    network.quiesce()
    time.sleep(1)
    assert len(seqs(flow_bed, relay)) < last_seq(network) - FIRST_SEQ  # it does pause
    assert stood_at < last_seq(network)

    def settled() -> bool:
        flow_bed.settle("firehose_live", "index")
        return cursor_of(flow_bed, relay) >= last_seq(network)

    wait_until(settled)
    assert sorted(set(seqs(flow_bed, relay))) == list(range(FIRST_SEQ, last_seq(network) + 1))
    assert flow.terminate() == 0


def test_a_killed_broker_holds_the_cursor_back(
    simulator: Start, private_log: EmbeddedLog, database: str, tmp_path: Path
) -> None:
    """G1, G8: a broker killed under load, then the flow; the cursor covers only what the log kept."""
    network = simulator(**SIZE, writer_rate=200)
    (relay,) = network.relays
    bootstrap = private_log.bootstrap
    create_topics(bootstrap, "k-", 4)
    settings = Settings(
        kafka_bootstrap=bootstrap,
        database=database,
        relays=[relay],
        plc=network.plc,
        kafka_topic_prefix="k-",
        allow_private_hosts=True,
        epoch_seconds=0.2,
        firehose_start="oldest",
    )
    with psycopg.connect(database, autocommit=True) as db:

        def cursor() -> int:
            row = db.execute("select position::bigint from sluice.cursor where flow = 'firehose'").fetchone()
            return int(row[0]) if row else 0

        def in_log() -> set[int]:
            return {wire.decode_live(m.value()).seq for m in read_topic(bootstrap, "k-firehose_live")}

        flow = FlowProcess("firehose", settings, tmp_path / "flow.log")
        wait_until(lambda: cursor() > FIRST_SEQ + 50)
        private_log.kill()
        time.sleep(1)
        flow.kill()
        durable = cursor()
        private_log.start()
        assert set(range(FIRST_SEQ, durable + 1)) <= wait_until(in_log)
        flow = FlowProcess("firehose", settings, tmp_path / "flow.log")
        network.quiesce()
        wait_until(lambda: cursor() >= last_seq(network))
        assert flow.terminate() == 0
        assert in_log() == set(range(FIRST_SEQ, last_seq(network) + 1))


def test_a_relay_that_is_back_and_quiet_is_no_failure(
    simulator: Start, flow_bed: FlowBed, proxy: Callable[..., Proxy]
) -> None:
    """B8, R3: the health page names what is wrong, and no longer than it is: a labeler may have no word for hours."""
    network = simulator(**SIZE)
    host, _, port = network.relays[0].removeprefix("http://").partition(":")
    way = proxy((host, int(port)))
    way.refuse()
    relay = f"http://{way.address}"
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay], firehose_start="oldest")
    wait_until(lambda: (page := flow.health())["state"] == "failing" and relay in page["why"])
    way.restore()
    wait_until(lambda: flow.health()["state"] == "idle")
    assert seqs(flow_bed, relay) == []
    assert flow.terminate() == 0


def test_no_private_relay_is_read_unless_allowed(simulator: Start, flow_bed: FlowBed) -> None:
    """G9"""
    network = simulator(**SIZE)
    flow = flow_bed.start("firehose", plc=network.plc, relays=network.relays, allow_private_hosts=False)
    page = wait_until(lambda: (page := flow.health())["state"] == "failing" and page)
    assert "scheme" in page["why"]
    assert flow.terminate() == 0


@pytest.mark.parametrize("text", ["", "-5", "12x"])
def test_a_cursor_that_is_none_is_refused_with_its_remedy(simulator: Start, flow_bed: FlowBed, text: str) -> None:
    network = simulator(**SIZE)
    (relay,) = network.relays
    flow_bed.rows(
        "insert into sluice.cursor (flow, upstream, position) values ('firehose', %s, %s) returning 1", relay, text
    )
    flow = flow_bed.start("firehose", plc=network.plc, relays=[relay])
    assert flow.process.wait(60) != 0
    assert "sluice cursors set firehose" in flow.log_file.read_text()
