"""TLS and SASL: every client of ours reaches a real broker that asks for a user, and a wrong password is one clear line."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cli.settings_text import page
from connectors.kafka import client as broker
from connectors.kafka import log_spans, topics
from connectors.kafka.back_pressure import HighWater
from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import LogUnavailable, cluster_id, watermarks
from connectors.kafka.offsets import Offsets
from connectors.kafka.producer import LogProducer, Out
from connectors.postgres.migrate import migrate
from local.embedded.embedded_log import EmbeddedLog
from local.embedded.guarded_process import LOOPBACK
from schemas.settings import Settings, SettingsError, load
from tests.support import zygote
from tests.support.log_listeners import SECURED, secured_listener

USER, PASSWORD = "mirror", "correct-horse-7f"


def certificate(pem: Path) -> None:
    """A key and a certificate for 127.0.0.1 that nobody but itself vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the test's broker")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedLog, Path]]:
    """A broker with a listener for TLS and SASL, and the file that vouches for it."""
    folder = tmp_path_factory.mktemp("secured")
    certificate(folder / "broker.pem")
    listeners = secured_listener({USER: PASSWORD}, folder / "broker.pem")
    with EmbeddedLog(folder / "log", heap_mb=256, listeners=listeners) as server:
        yield server, folder / "broker.pem"


def reached(secured: Any, **other: Any) -> Settings:
    server, pem = secured
    given: dict[str, Any] = {
        "kafka_bootstrap": f"{LOOPBACK}:{server.port_of(SECURED)}",
        "kafka_protocol": "sasl_ssl",
        "kafka_username": USER,
        "kafka_password": PASSWORD,
        "kafka_ca": str(pem),
        "kafka_partitions": 2,
        "kafka_replication": 1,
    }
    return load(**{**given, **other})


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN"])
def test_every_client_authenticates(secured: Any, database: str, mechanism: str) -> None:
    """Admin, producer, group consumer, readers of positions, back-pressure and replay: all get in."""
    settings = reached(
        secured, kafka_mechanism=mechanism, kafka_topic_prefix=f"{mechanism.lower()}-", database=database
    )
    assert cluster_id(settings)
    assert topics.apply(settings)
    assert topics.diff(settings) == []
    did = "did:plc:secured"
    LogProducer(settings).send([Out("repo_backfill", did, b"{}")])
    assert sum(high for _, high in watermarks(settings, ["repo_backfill"]).values()) == 1
    consumer = GroupConsumer(settings, "backfill", ["repo_backfill"])
    deadline, found = time.monotonic() + 60, []
    while not found:
        assert time.monotonic() < deadline
        found = consumer.poll(10)
    consumer.commit({(str(found[0].topic()), int(found[0].partition() or 0)): 1})
    consumer.close()
    migrate(database)
    with psycopg.connect(database) as db:
        standings = Offsets(settings).lags(db)
    assert [one.position for one in standings if one.topic == "repo_backfill" and one.end] == [1]
    spans = {part: span for (_, part), span in watermarks(settings, ["repo_backfill"]).items() if span[1]}
    assert sum(len(batch) for batch in log_spans.read(settings, "repo_backfill", spans, 10)) == 1
    LogProducer(settings).send([Out("repo_backfill", did, b"{}")] * 2)
    watch = HighWater(settings.replaced(kafka_high_water_messages=1), "repo_backfill", "backfill")
    watch.start()
    deadline = time.monotonic() + 60
    while not (why := watch.paused):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "2 messages behind" in why
    watch.stop()


@pytest.mark.parametrize(
    ("wrong", "said", "seconds"),
    [
        ({"kafka_password": "guessed-secret"}, "SLUICE_KAFKA_PASSWORD", 60),
        ({"kafka_ca": ""}, "SLUICE_KAFKA_CA", 60),
        # no error tells this one from a broker that is away
        ({"kafka_protocol": "ssl", "kafka_username": None, "kafka_password": None}, "SLUICE_KAFKA_BOOTSTRAP", 6),
    ],
)
def test_a_refused_login_is_reported_with_its_reason(
    secured: Any, wrong: dict[str, Any], said: str, seconds: float
) -> None:
    settings = reached(secured, **wrong)
    with pytest.raises(LogUnavailable, match=said) as refused:
        cluster_id(settings, seconds)
    assert "guessed-secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_process_ends_with_one_line_and_without_the_password(secured: Any, database: str) -> None:
    server, pem = secured
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")},
        "SLUICE_KAFKA_BOOTSTRAP": f"{LOOPBACK}:{server.port_of(SECURED)}",
        "SLUICE_DATABASE": database,
        "SLUICE_KAFKA_PROTOCOL": "sasl_ssl",
        "SLUICE_KAFKA_USERNAME": USER,
        "SLUICE_KAFKA_PASSWORD": "guessed-secret",
        "SLUICE_KAFKA_CA": str(pem),
    }
    done = zygote.run(["sluice", "run", "index"], env=environment, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "SLUICE_KAFKA_PASSWORD" in done.stderr.strip().splitlines()[-1]
    assert "guessed-secret" not in done.stderr + done.stdout


def test_the_password_is_shown_nowhere(secured: Any) -> None:
    settings = reached(secured)
    assert PASSWORD not in page(settings)
    assert PASSWORD not in repr(settings)
    assert "SLUICE_KAFKA_PASSWORD = ***" in page(settings)
    assert PASSWORD in json.dumps(
        settings.model_dump(mode="json")
    )  # children of `up` are given it in their environment


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kafka_protocol": "sasl_ssl", "kafka_username": "x"}, "SLUICE_KAFKA_PASSWORD is not set"),
        ({"kafka_protocol": "sasl_ssl", "kafka_password": "x"}, "SLUICE_KAFKA_USERNAME is not set"),
        ({"kafka_username": "x", "kafka_password": "hidden"}, "SLUICE_KAFKA_PROTOCOL is plaintext"),
        ({"kafka_ca": __file__}, "set it to ssl"),
        ({"kafka_protocol": "ssl", "kafka_ca": "nowhere.pem"}, "nowhere.pem cannot be read"),
        ({"kafka_protocol": "ssl", "kafka_key": __file__}, "go together"),
        ({"kafka_protocol": "tls"}, "SLUICE_KAFKA_PROTOCOL"),
        ({"kafka_mechanism": "GSSAPI"}, "SLUICE_KAFKA_MECHANISM"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        broker.options(load(**given), "test")
    assert "hidden" not in str(refused.value)
