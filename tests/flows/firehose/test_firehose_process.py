"""The firehose flow as a process: killed, behind a broker that is killed, and paused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from local.embedded.embedded_log import EmbeddedLog
from schemas import wire
from schemas.settings import Settings
from tests.flows.firehose.relay_reading import FIRST_SEQ, SIZE, cursor_of, last_seq, reach, seqs
from tests.support.flow_fixtures import FlowBed
from tests.support.flow_process import FlowProcess, create_topics, read_topic, wait_until
from tests.support.simulation import Simulation
from tests.support.size import sized

Start = Callable[..., Simulation]


def test_kill_9_at_any_moment_loses_no_event_and_the_cursor_never_passes_the_log(
    simulator: Start, flow_bed: FlowBed
) -> None:
    """G1, G8, B4"""
    network = simulator(**SIZE, writer_rate=80)  # more would only pile up while a slow machine starts the flow
    (relay,) = network.relays
    kills = 0
    for _ in range(sized(2, 4)):
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
    assert kills == sized(2, 4)
    assert set(seqs(flow_bed, relay)) == set(range(FIRST_SEQ, last_seq(network) + 1))
    assert flow_bed.rows("select * from sluice.stream_gap") == []
    assert flow_bed.messages("dead_letter") == []
    newest = {key: value["rev"] for key, value in flow_bed.messages("firehose_live") if value["type"] == "commit"}
    truth = network.state()
    assert newest
    assert all(truth[did].rev == rev for did, rev in newest.items())


def test_back_pressure_pauses_is_reported_and_resumes_without_loss(simulator: Start, flow_bed: FlowBed) -> None:
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
    time.sleep(1)  # a flow that does not pause reads on meanwhile
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
        written = last_seq(network)
        wait_until(lambda: last_seq(network) > written + 50, what="the relay goes on without the broker")
        flow.kill()
        durable = cursor()
        private_log.start()
        assert set(range(FIRST_SEQ, durable + 1)) <= wait_until(in_log)
        flow = FlowProcess("firehose", settings, tmp_path / "flow.log")
        network.quiesce()
        wait_until(lambda: cursor() >= last_seq(network))
        assert flow.terminate() == 0
        assert in_log() == set(range(FIRST_SEQ, last_seq(network) + 1))
