"""The embedded log: starts, keeps, survives kill -9, retains, balances, and says what is wrong."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    OffsetSpec,
    ResourceType,
)

from local.embedded.embedded_log import EmbeddedLog, EmbeddedLogUnavailable
from local.embedded.kafka_jars import fetch_jars
from tests.support.broker import LogScope, admin_client, create_topic
from tests.support.tcp_proxy import Proxy

MIB = 1024 * 1024
WAIT_SECONDS = 60


def poll_until(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    """Produces in order and returns once every one is acknowledged."""
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "message.max.bytes": 16 * MIB})
    failures: list[object] = []
    for value in values:
        producer.produce(topic, value, on_delivery=lambda err, _: err and failures.append(err))
    assert producer.flush(WAIT_SECONDS) == 0
    assert failures == []


def group_consumer(bootstrap: str, group: str, **settings: str | int) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 16 * MIB,
            "fetch.max.bytes": 64 * MIB,
            **{key.replace("_", "."): value for key, value in settings.items()},
        }
    )


def consume(consumer: Consumer, count: int) -> list[Message]:
    got: list[Message] = []
    deadline = time.monotonic() + WAIT_SECONDS
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count} messages came"
        got.extend(message for message in consumer.consume(count - len(got), 0.2) if message.error() is None)
    return got


def read_all(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    consumer = group_consumer(bootstrap, f"reader-{secrets.token_hex(4)}")
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        return [message.value() for message in consume(consumer, count)]
    finally:
        consumer.close()


def start_offset(admin: AdminClient, topic: str) -> int:
    asked = admin.list_offsets({TopicPartition(topic, 0): OffsetSpec.earliest()})
    return int(next(iter(asked.values())).result(WAIT_SECONDS).offset)


def test_round_trip_of_a_15_mib_message(log_scope: LogScope) -> None:
    topic = log_scope.create("big", max_message_bytes=16 * MIB)
    values = [b"small", secrets.token_bytes(15 * MIB), b"after"]
    produce(log_scope.bootstrap, topic, values)
    assert read_all(log_scope.bootstrap, topic, 3) == values


def test_messages_offsets_and_address_survive_kill_9_and_a_clean_restart(
    private_log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: what the log acknowledged is there afterwards, at the same address; while it runs, its folder is its own."""
    monkeypatch.setattr("local.embedded.embedded_log.BUSY_SECONDS", 0.2)
    with pytest.raises(EmbeddedLogUnavailable, match="is in use by another process"):
        EmbeddedLog(private_log.data_dir).start()
    assert private_log.running

    address = private_log.bootstrap
    create_topic(admin_client(address), "kept")
    values = [str(number).encode() for number in range(1000)]
    produce(address, "kept", values)
    killed = private_log.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    poll_until(lambda: not private_log.running)
    assert private_log.start() == address
    assert private_log.pid != killed
    assert read_all(address, "kept", 1000) == values

    consumer = group_consumer(address, "readers")
    consumer.subscribe(["kept"])
    second = consume(consumer, 2)[1]
    consumer.commit(second, asynchronous=False)
    consumer.close()
    private_log.stop()
    assert not private_log.running
    assert private_log.start() == address
    consumer = group_consumer(address, "readers")
    consumer.subscribe(["kept"])
    assert [message.value() for message in consume(consumer, 2)] == [b"2", b"3"]
    consumer.close()


def test_old_messages_go_by_the_topics_retention(log_scope: LogScope) -> None:
    topic = log_scope.create("short", segment_ms=100, file_delete_delay_ms=100)
    produce(log_scope.bootstrap, topic, [b"old"] * 10)
    assert start_offset(log_scope.admin, topic) == 0
    # only now: the broker looks every two seconds, and may do so between the two lines above
    entry = ConfigEntry("retention.ms", "500", incremental_operation=AlterConfigOpType.SET)
    changed = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    log_scope.admin.incremental_alter_configs([changed])[changed].result(WAIT_SECONDS)

    def old_are_gone() -> bool:
        # segments close when something is written to them after their time
        produce(log_scope.bootstrap, topic, [b"new"])
        return start_offset(log_scope.admin, topic) >= 10

    poll_until(old_are_gone)


OTHERS_SESSION_SECONDS = 45  # of a client that asks for none: what the broker would wait if it did not take the 3 s
MEMBER = """
import sys
from confluent_kafka import Consumer
consumer = Consumer({"bootstrap.servers": sys.argv[1], "group.id": sys.argv[2], "session.timeout.ms": 3000,
                     "heartbeat.interval.ms": 500, "auto.offset.reset": "earliest"})
consumer.subscribe([sys.argv[3]], on_assign=lambda _, parts: print(len(parts), flush=True))
while True:
    consumer.poll(0.1)
"""


def test_a_killed_member_loses_its_partitions_within_the_session_timeout(log_scope: LogScope) -> None:
    topic, group = log_scope.create("shared", partitions=4), log_scope.name("group")
    victim = subprocess.Popen(
        [sys.executable, "-c", MEMBER, log_scope.bootstrap, group, topic], stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    try:
        assert victim.stdout.readline().strip() == "4"
        heir = group_consumer(log_scope.bootstrap, group, session_timeout_ms=3000, heartbeat_interval_ms=500)
        heir.subscribe([topic])

        def heir_has(count: int) -> bool:
            heir.poll(0.05)
            return len(heir.assignment()) == count

        poll_until(lambda: heir_has(2))
        victim.kill()
        poll_until(lambda: heir_has(4), OTHERS_SESSION_SECONDS - 5)
        heir.close()
    finally:
        victim.kill()
        victim.wait()


def test_clients_of_a_proxied_log_stay_behind_the_proxy(log_scope: LogScope, log_proxy: Proxy) -> None:
    topic = log_scope.create("proxied")
    produce(log_proxy.address, topic, [b"through"])
    assert log_proxy.counts.sent > 0
    log_proxy.refuse()
    producer = Producer({"bootstrap.servers": log_proxy.address, "message.timeout.ms": 1000, "log_level": 0})
    failures: list[object] = []
    producer.produce(topic, b"lost", on_delivery=lambda err, _: failures.append(err))
    producer.flush(WAIT_SECONDS)
    assert len(failures) == 1
    assert failures[0] is not None  # never `==`: comparing a KafkaError with None is a SystemError
    log_proxy.restore()
    produce(log_proxy.address, topic, [b"again"])
    assert read_all(log_scope.bootstrap, topic, 2) == [b"through", b"again"]


def test_an_occupied_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        with pytest.raises(EmbeddedLogUnavailable) as refusal:
            EmbeddedLog(tmp_path / "log", port=port).start()
    assert f"port {port} on 127.0.0.1 is occupied" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def fake_java(folder: Path, version: str) -> None:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2018-10-16' >&2\n")
    java.chmod(0o755)


@pytest.mark.parametrize(
    ("java", "reason"),
    [
        (None, "there is no `java` on the PATH"),
        ("11.0.1", "is Java 11, and the log needs 17 or newer"),
        ("1.8.0_292", "is Java 8, and"),
        ("21.0.2", "there is no `mvn` on the PATH"),
    ],
)
def test_what_is_missing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, java: str | None, reason: str
) -> None:
    """No Java, an old one, no Maven: the line names the reason and the ways to get a log."""
    tools = tmp_path / "bin"
    tools.mkdir()
    if java is not None:
        fake_java(tools, java)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(EmbeddedLogUnavailable) as refusal:
        EmbeddedLog(tmp_path / "log", jars=tmp_path / "jars").start()
    said = str(refusal.value)
    assert reason in said
    assert "\n" not in said
    assert all(way in said for way in ("Java 17+", "Maven", "--bootstrap", "docker compose -f redpanda.yml up"))


def test_a_failed_fetch_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    fake_java(tools, "17.0.1")
    maven = tools / "mvn"
    maven.write_text("#!/bin/sh\necho '[ERROR] Could not transfer artifact: Connection refused'\nexit 1\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(EmbeddedLogUnavailable, match=r"Maven could not fetch Apache Kafka .*Connection refused"):
        EmbeddedLog(tmp_path / "log", jars=tmp_path / "cache" / "jars").start()
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [".jars.lock"]


def test_a_download_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took minutes without a word. Maven's own lines, with a Maven that has them printed."""
    maven = tmp_path / "mvn"
    maven.write_text(
        """#!/bin/sh
for argument in "$@"; do case "$argument" in -DoutputDirectory=*) mkdir -p "${argument#*=}"; touch "${argument#*=}/a.jar";; esac; done
echo '[INFO] Downloading from central: https://host.test/a.jar'
echo '[INFO] Downloaded from central: https://host.test/a.jar (11 MB at 3.1 MB/s)'
echo '[INFO] Downloaded from central: https://host.test/b.jar (500 kB at 980 kB/s)'
echo '[INFO] Downloaded from central: https://host.test/c.pom (700 B at 1 kB/s)'
"""
    )
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("local.embedded.kafka_jars.SAY_SECONDS", 0.0)
    said: list[str] = []
    assert fetch_jars(tmp_path / "jars", said.append) == [tmp_path / "jars" / "libs" / "a.jar"]
    assert said[0] == "fetching Apache Kafka with Maven …"
    assert said[1] == "fetching Apache Kafka: 11 of about 45 MB"
    assert said[-1].endswith(" s, 12 MB downloaded")
    said.clear()
    assert fetch_jars(tmp_path / "jars", said.append)
    assert said == [], "it is there"
