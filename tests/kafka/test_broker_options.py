"""What every Kafka client of ours is made with: a name that says whose it is, time-outs, and a bounded log."""

from __future__ import annotations

import logging
import re
import socket

import pytest

from connectors.kafka import client as broker
from connectors.kafka.log import admin
from schemas.settings import Settings
from tests.support.flow_process import wait_until

SETTINGS = Settings(kafka_bootstrap="127.0.0.1:1")


def test_a_client_id_names_its_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: flow, use and host, so that a broker's operator finds the process."""
    monkeypatch.setattr(broker, "_flow", ["cli"])
    broker.identify("index")
    name = broker.options(SETTINGS, "group-index")["client.id"]
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())
    assert name == f"sluice-index-group-index-{host}"


def test_a_name_has_the_characters_and_the_length_that_brokers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "höst/1 " + "x" * 300)
    name = broker.client_id("producer")
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name)


def test_every_request_has_a_deadline() -> None:
    """H1: a coordinator that does not answer loses the connection, and another one is asked."""
    options = broker.options(SETTINGS, "producer")
    assert options["socket.timeout.ms"] == 20_000
    assert options["socket.keepalive.enable"] is True
    assert admin(SETTINGS) is not None  # librdkafka takes them


def test_the_librarys_own_lines_are_limited() -> None:
    """G6: 3,000 lines in minutes."""
    now = [0.0]
    limit = broker._Limit(3, 60.0, lambda: now[0])
    passed = []
    for number in range(1000):
        record = logging.makeLogRecord({"msg": number})
        if limit.filter(record):
            passed.append(record)
    assert [record.msg for record in passed] == [0, 1, 2]
    now[0] = 60.0
    record = logging.makeLogRecord({"msg": "later"})
    assert limit.filter(record)
    assert record.suppressed == 997  # type: ignore[attr-defined]
    assert limit.filter(following := logging.makeLogRecord({"msg": "after"}))
    assert not hasattr(following, "suppressed")


def test_lines_of_a_real_client_go_through_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer without a broker: its errors are ours to log, and not written to standard error by themselves."""
    from confluent_kafka import Producer

    assert [type(one) for one in broker.LOG.filters] == [broker._Limit]
    # clients of other tests in this process may have used up its lines, and may say something meanwhile
    monkeypatch.setattr(broker.LOG, "filters", [broker._Limit(broker.LOG_LINES)])
    producer = Producer(broker.options(SETTINGS, "producer") | {"log_level": 3}, logger=broker.LOG)

    def said() -> bool:
        return any("127.0.0.1:1" in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.INFO, logger="rdkafka"):
        wait_until(lambda: [producer.poll(0.1)] and said())
