"""Admin requests to the log (a Kafka-compatible broker), and types that its writers and readers share.

Only features that Redpanda documents are used. Writer: `connectors/kafka/producer.py`; reader: `connectors/kafka/consumer.py`.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from connectors.kafka import client as broker
from connectors.runtime import watchdog
from schemas.errors import OperatorError
from schemas.settings import Settings

ANSWER_SECONDS = 10.0  # timeout of a request
LATE_SECONDS = 5.0  # beyond it, for the client to report the timeout
MOVE_SECONDS = 10.0  # for a broker to take over from another
MOVE_STEP_SECONDS = 0.2
SETTLING_SECONDS = 20.0  # for a partition to elect a leader

Part = tuple[str, int]  # (topic, partition)
K = TypeVar("K")
X = TypeVar("X")


class LogUnavailable(OperatorError):
    """The broker did not answer or did not accept a message. The text names the topic and the remedy."""


def admin(settings: Settings, refused: broker.PermanentErrors | None = None) -> AdminClient:
    """An admin client. `refused`: its error callback."""
    quiet = {"log_level": 0, "socket.timeout.ms": 10_000} | ({"error_cb": refused} if refused else {})
    return AdminClient(broker.options(settings, "admin") | quiet)


def answers(futures: Mapping[K, Future[X]], seconds: float = ANSWER_SECONDS) -> dict[K, X]:
    """Results of an admin client's requests, all within `seconds` plus LATE_SECONDS. Raises KafkaException.

    The client normally completes each future after its own request timeout; this limit applies if it does not.
    """
    deadline = time.monotonic() + seconds + LATE_SECONDS
    found = {}
    for key, future in futures.items():
        try:
            found[key] = future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError as err:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the client did not answer in time")) from err
        watchdog.mark()
    return found


def unless_moving(request: Callable[[], X]) -> X:
    """The answer to a request. While a group or a partition moves to another broker, ask again for MOVE_SECONDS.

    The request may be carried out more than once. Raises KafkaException.
    """
    until = time.monotonic() + MOVE_SECONDS
    while True:
        try:
            return request()
        except KafkaException as err:
            if err.args[0].code() not in broker.MOVING or time.monotonic() > until:
                raise
        watchdog.mark()
        time.sleep(MOVE_STEP_SECONDS)


def cluster_id(settings: Settings, wait_seconds: float = 60.0) -> str:
    """The broker's cluster id, part of the key of stored offsets. Raises LogUnavailable if no broker answers in time."""
    refused = broker.PermanentErrors()
    client, deadline = admin(settings, refused), time.monotonic() + wait_seconds
    answer_seconds = 0.5
    while True:
        why = "it did not report its cluster id"
        try:
            # not describe_cluster: librdkafka 2.16 aborts the process if the response lists no brokers, as it does during a
            # broker's start (rd_kafka_admin_response_parse)
            if known := client.list_topics(timeout=answer_seconds).cluster_id:
                return str(known)
        except KafkaException as err:
            why = str(err)
        client.poll(0)  # runs the error callback
        if refused.remedy:
            raise LogUnavailable(f"{settings.kafka_bootstrap}: {refused.remedy}")
        if time.monotonic() > deadline:
            raise LogUnavailable(
                f"{settings.kafka_bootstrap}: {why}; start the broker or correct SLUICE_KAFKA_BOOTSTRAP"
            )
        time.sleep(0.2)
        answer_seconds = min(answer_seconds * 2, 5.0)


def watermarks(settings: Settings, topics: Iterable[str]) -> dict[Part, tuple[int, int]]:
    """(topic with prefix, partition) → (first offset, next offset). Raises LogUnavailable."""
    client, deadline = admin(settings), time.monotonic() + SETTLING_SECONDS
    names = [settings.topic(topic) for topic in topics]
    while True:
        try:
            return _marks(client, names)
        except KafkaException as err:
            # a topic has no leader shortly after its creation and during an election
            error: KafkaError = err.args[0]
            if time.monotonic() > deadline or not broker.transient(error):
                raise LogUnavailable(f"{settings.kafka_bootstrap}: {err}") from err
            watchdog.mark()
            time.sleep(0.2)


def _marks(client: AdminClient, names: list[str]) -> dict[Part, tuple[int, int]]:
    known = client.list_topics(timeout=ANSWER_SECONDS).topics
    for name in names:
        error = known[name].error if name in known else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        if error is not None:
            raise LogUnavailable(f"{name}: {error.str()}; run `sluice topics apply`")
    places = [TopicPartition(name, part) for name in names for part in known[name].partitions]
    lows, highs = (
        answers(client.list_offsets(dict.fromkeys(places, spec), request_timeout=ANSWER_SECONDS))
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
    )
    return {(at.topic, at.partition): (lows[at].offset, highs[at].offset) for at in places}
