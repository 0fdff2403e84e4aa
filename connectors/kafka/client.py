"""Configuration of all librdkafka clients: addresses, TLS, SASL, client ids and timeouts.

`options(settings, use)` returns the options common to all clients. `PermanentErrors` records errors that retries cannot fix,
such as a wrong password or an untrusted certificate. `LOG` receives librdkafka's log lines, at most LOG_LINES a minute.
"""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaError
from typing_extensions import override

from connectors.runtime import metrics
from schemas.settings import PREFIX, Settings, SettingsError

INCURABLE = {
    KafkaError._AUTHENTICATION: "correct SLUICE_KAFKA_USERNAME, SLUICE_KAFKA_PASSWORD and SLUICE_KAFKA_MECHANISM",
    KafkaError.SASL_AUTHENTICATION_FAILED: "correct SLUICE_KAFKA_USERNAME and SLUICE_KAFKA_PASSWORD",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "set SLUICE_KAFKA_MECHANISM to one that the broker has",
    KafkaError._SSL: "correct SLUICE_KAFKA_PROTOCOL, or SLUICE_KAFKA_CA to the authority of the broker's certificate",
}
FILES = {
    "ssl.ca.location": "kafka_ca",
    "ssl.certificate.location": "kafka_certificate",
    "ssl.key.location": "kafka_key",
}
MOVING = {  # answers of a broker while another one takes over a group, a partition or the control of the cluster
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.NOT_CONTROLLER,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
}
TRANSIENT = MOVING | {  # worth a retry: the protocol's retriable errors, and librdkafka's local errors of the same kind
    KafkaError._PARTITION_EOF,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._WAIT_COORD,
    KafkaError._WAIT_CACHE,
    KafkaError._MAX_POLL_EXCEEDED,  # the next poll rejoins the group
    KafkaError.INVALID_MSG,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.PREFERRED_LEADER_NOT_AVAILABLE,
    KafkaError.ELIGIBLE_LEADERS_NOT_AVAILABLE,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.THROTTLING_QUOTA_EXCEEDED,
    KafkaError.FETCH_SESSION_ID_NOT_FOUND,
    KafkaError.INVALID_FETCH_SESSION_EPOCH,
    KafkaError.LISTENER_NOT_FOUND,
}
REQUEST_SECONDS = 20.0
"""Request timeout: librdkafka then closes the connection and retries on a new one."""
CLOSE_SECONDS = 5.0
LOG_LINES = 20

_flow = ["cli"]


def identify(flow: str) -> None:
    """Set the flow name in the client ids of all clients created afterwards."""
    _flow[0] = flow


def client_id(use: str) -> str:
    """`sluice-FLOW-USE-HOST`, restricted to the characters that Kafka's tools accept."""
    name = "-".join(part for part in ("sluice", _flow[0], use, socket.gethostname()) if part)
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:200]


def transient(error: KafkaError) -> bool:
    """Whether a retry may succeed."""
    return not error.fatal() and (error.retriable() or error.code() in TRANSIENT)


def options(settings: Settings, use: str) -> dict[str, Any]:
    """librdkafka's connection options. Raises SettingsError for an unreadable PEM file."""
    found: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": client_id(use),
        "socket.timeout.ms": int(REQUEST_SECONDS * 1000),
        "socket.keepalive.enable": True,
    }
    if settings.kafka_protocol != "plaintext":
        found["security.protocol"] = settings.kafka_protocol
    if settings.kafka_protocol.startswith("sasl_"):
        found |= {
            "sasl.mechanism": settings.kafka_mechanism,
            "sasl.username": settings.kafka_username,
            "sasl.password": settings.kafka_password,
        }
    if settings.kafka_protocol.endswith("ssl"):
        for name, setting in FILES.items():
            if path := getattr(settings, setting):
                if not os.access(path, os.R_OK):
                    raise SettingsError(f"{PREFIX}{setting.upper()}: {path} cannot be read; name a PEM file")
                found[name] = path
    return found


def reader(settings: Settings, group: str, *, use: str = "", **more: Any) -> Consumer:
    """A consumer with manual assignment: it never joins a group and never commits.

    `group`: the group whose offsets it queries, without the prefix. `use`: for the client id; default: the group. `more`:
    librdkafka options, with `_` for `.`.
    """
    own = {"group.id": settings.group(group), "enable.auto.commit": False, "log_level": 0}
    return Consumer(options(settings, use or group) | own | {name.replace("_", "."): more[name] for name in more})


class PermanentErrors:
    """An `error_cb` that keeps the first error that retries cannot fix."""

    def __init__(self) -> None:
        self.first: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        if self.first is None and error.code() in INCURABLE:
            self.first = error

    @property
    def remedy(self) -> str | None:
        """The first permanent error with its remedy, or None."""
        if self.first is None:
            return None
        said = self.first.str().partition(": ")[2] or self.first.str()
        return f"{said.strip()}; {INCURABLE[self.first.code()]}"


class _Limit(logging.Filter):
    """Passes at most `lines` records per `seconds`. The next record that passes carries the number of suppressed ones."""

    def __init__(self, lines: int, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._begun = float("-inf")
        self._passed = self._suppressed = 0

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        if now - self._begun >= self._seconds:
            self._begun, self._passed = now, 0
        if self._passed >= self._lines:
            self._suppressed += 1
            metrics.KAFKA_LINES_SUPPRESSED.inc()
            return False
        self._passed += 1
        if self._suppressed:
            record.suppressed = self._suppressed
            self._suppressed = 0
        return True


LOG = logging.getLogger("rdkafka")
"""Logger for librdkafka clients; by default librdkafka writes to standard error without a limit."""
LOG.addFilter(_Limit(LOG_LINES))


def close(consumer: Consumer, seconds: float = CLOSE_SECONDS) -> bool:
    """Close a consumer in a thread; False on a timeout, after which the daemon thread is abandoned.

    librdkafka's `close` waits for the responses to its last requests without a time limit.
    """
    thread = threading.Thread(target=consumer.close, name="close consumer", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        LOG.warning("a consumer does not close; its thread is abandoned", extra={"seconds": seconds})
    return not thread.is_alive()
