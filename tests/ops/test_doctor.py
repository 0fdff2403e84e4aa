"""`sluice doctor` with each part broken for real: it is told, with a remedy, and nothing else is."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from connectors.kafka import topics
from connectors.kafka.log import cluster_id
from connectors.kafka.producer import LogProducer, Out
from ops.doctor import Check, CheckState, clock_check, disk_check, examine, near_start
from schemas.settings import Settings
from tests.support import zygote
from tests.support.simulation import Simulation, start_simulation

PARTITIONS = 2


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    running = start_simulation(repos=2, seed=1)
    yield running
    running.stop()


@pytest.fixture
def whole(log: str, database: str, simulation: Simulation) -> Settings:
    """Everything is there."""
    settings = Settings(
        kafka_bootstrap=log,
        database=database,
        kafka_topic_prefix=f"t{secrets.token_hex(4)}-",
        kafka_partitions=PARTITIONS,
        kafka_replication=1,
        relays=simulation.relays[:1],
        plc=simulation.plc,
        allow_private_hosts=True,
    )
    topics.apply(settings)
    return settings


def wrong(settings: Settings, **changed: Any) -> dict[str, Check]:
    """Checks that failed, by name; each has a remedy."""
    found = {one.name: one for one in examine(settings.replaced(**changed)) if one.state is CheckState.FAIL}
    assert all(one.remedy for one in found.values())
    return found


def test_a_healthy_mirror_has_nothing_to_mend(whole: Settings) -> None:
    checks = {one.name: one.state for one in examine(whole) if one.name != "disk"}
    names = (
        "database",
        "migrations",
        "clock",
        "broker",
        "topics",
        "retention",
        "broker clock",
        "attention",
        "relay",
        "relay stream",
        "plc",
    )
    assert checks == dict.fromkeys(names, CheckState.OK)


def test_each_unavailable_part_is_named(whole: Settings) -> None:
    """And a part that is away does not hide the others."""
    assert set(wrong(whole, database="postgresql://nobody@127.0.0.1:1/none")) == {"database"}
    assert set(wrong(whole, kafka_bootstrap="127.0.0.1:1")) == {"broker"}
    away = wrong(whole, relays=["http://127.0.0.1:1"], plc="http://127.0.0.1:1")
    assert set(away) == {"relay", "plc"}
    assert "SLUICE_RELAYS" in away["relay"].remedy
    refused = wrong(whole, allow_private_hosts=False)
    assert "SLUICE_ALLOW_PRIVATE_HOSTS" in refused["relay"].remedy


def test_a_relay_behind_a_proxy_that_passes_no_websockets(whole: Settings) -> None:
    """B4: pages of lists are no proof of a stream."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        found = wrong(whole, relays=[f"http://127.0.0.1:{proxy.server_port}"])
        proxy.shutdown()
    assert set(found) == {"relay stream"}
    assert "websockets" in found["relay stream"].remedy


def test_topics_and_migrations_that_are_missing(whole: Settings, blank_database: str) -> None:
    found = wrong(whole, database=blank_database)
    assert set(found) == {"migrations"}
    assert "sluice migrate" in found["migrations"].remedy
    found = wrong(whole, kafka_topic_prefix=whole.kafka_topic_prefix + "other-")
    assert set(found) == {"topics"}
    assert "topics apply" in found["topics"].remedy
    assert "SLUICE_KAFKA_PARTITIONS" in wrong(whole, kafka_partitions=3)["topics"].remedy


def test_a_group_past_the_end_and_one_behind_the_start(whole: Settings) -> None:
    """B9"""
    add = (
        "insert into sluice.stream_offset (cluster, group_id, topic, part, next) values (%s, %s, %s, 0, %s)"
        " on conflict (cluster, group_id, topic, part) do update set next = excluded.next"
    )
    values = (cluster_id(whole), whole.group("index"), whole.topic("firehose_live"))
    with psycopg.connect(whole.database, autocommit=True) as db:
        db.execute(add, (*values, 1000))
        assert "past the end" in wrong(whole)["retention"].detail
        LogProducer(whole).send([Out("firehose_live", f"did:plc:{n}", b"{}") for n in range(60)])
        db.execute(add, (*values, 1))
        assert wrong(whole) == {}
        client = AdminClient({"bootstrap.servers": whole.kafka_bootstrap, "log_level": 0})
        from confluent_kafka import TopicPartition

        gone = TopicPartition(whole.topic("firehose_live"), 0, 5)
        client.delete_records([gone])[gone].result(60)
        assert "behind the log's start" in wrong(whole)["retention"].detail
        db.execute(add, (*values, 6))
        close = next(one for one in examine(whole) if one.name == "retention")
        assert (close.state, "close" in close.detail) == (CheckState.WARN, True)


def test_a_message_of_the_future(whole: Settings) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": whole.kafka_bootstrap})
    ahead = int((time.time() + 3600) * 1000)
    producer.produce(whole.topic("firehose_live"), b"{}", key=b"k", timestamp=ahead)
    assert producer.flush(60) == 0
    assert "in the future" in wrong(whole)["broker clock"].detail


def test_clocks_and_disks_have_limits() -> None:
    """What cannot be broken on the machine that runs this: the judgement alone."""
    assert clock_check("clock", 100.0, 100.0, 101.0).state is CheckState.OK
    assert [clock_check("clock", at, 100.0, 100.0).state for at in (90.0, 110.0, 0.0, 200.0)] == [
        CheckState.WARN, CheckState.WARN, CheckState.FAIL, CheckState.FAIL,
    ]  # fmt: skip
    assert [disk_check("d", free, 100).state for free in (50, 10, 1, 0)] == [
        CheckState.OK, CheckState.WARN, CheckState.FAIL, CheckState.FAIL,
    ]  # fmt: skip
    assert not near_start(0, 0, 100), "nothing is removed yet"
    assert not near_start(50, 100, 100)
    assert near_start(50, 60, 100)


def test_the_exit_code_reports_a_failed_check(whole: Settings) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLUICE_")}
    environment |= {
        "SLUICE_KAFKA_BOOTSTRAP": whole.kafka_bootstrap,
        "SLUICE_DATABASE": whole.database,
        "SLUICE_KAFKA_TOPIC_PREFIX": whole.kafka_topic_prefix,
        "SLUICE_KAFKA_PARTITIONS": str(PARTITIONS),
        "SLUICE_KAFKA_REPLICATION": "1",
        "SLUICE_RELAYS": whole.relays[0],
        "SLUICE_PLC": whole.plc,
        "SLUICE_ALLOW_PRIVATE_HOSTS": "true",
    }

    def doctor(*options: str, **more: str) -> subprocess.CompletedProcess[str]:
        return zygote.run(["sluice", "doctor", *options], env=environment | more, timeout=100)

    told = json.loads(doctor("--json").stdout)
    assert {one["name"] for one in told["checks"] if one["state"] == "fail"} <= {"disk"}
    broken = doctor(SLUICE_PLC="http://127.0.0.1:1")
    assert broken.returncode == 1
    assert "correct SLUICE_PLC" in broken.stdout
