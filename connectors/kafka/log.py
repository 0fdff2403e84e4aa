"""The log: a Kafka-compatible broker. What it is asked, and what its writers and readers share.

Only what Redpanda documents is used. `connectors/kafka/producer.py` writes, with checked deliveries;
`connectors/kafka/consumer.py` reads, in consumer groups.
"""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from connectors.kafka import client as broker
from connectors.runtime import watchdog
from schemas.errors import OperatorError
from schemas.settings import Settings

ANSWER_SECONDS = 10.0  # for the broker to answer a question
LATE_SECONDS = 5.0  # for its client to say that it did not
SETTLING_SECONDS = 20.0  # for a partition to have a leader, a group its coordinator

Part = tuple[str, int]  # (topic, partition)
K = TypeVar("K")
X = TypeVar("X")


class LogUnavailable(OperatorError):
    """The broker did not answer or did not take a message; the message names the topic and the remedy."""


def admin(settings: Settings, refused: broker.PermanentErrors | None = None) -> AdminClient:
    """An admin client for the broker of these settings; `refused` is told its errors."""
    quiet = {"log_level": 0, "socket.timeout.ms": 10_000} | ({"error_cb": refused} if refused else {})
    return AdminClient(broker.options(settings, "admin") | quiet)


def answers(futures: Mapping[K, Future[X]], seconds: float = ANSWER_SECONDS) -> dict[K, X]:
    """Results of an admin client's requests, all within this time and a little. Raises KafkaException.

    The client answers each of them after its own request time-out; this is for the case that it does not.
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


def cluster_id(settings: Settings, wait_seconds: float = 60.0) -> str:
    """The broker's cluster id, under which offsets are kept. Raises LogUnavailable when nobody answers in time."""
    refused = broker.PermanentErrors()
    client, deadline = admin(settings, refused), time.monotonic() + wait_seconds
    answer_seconds = 0.5
    while True:
        why = "it has not said its cluster's id"
        try:
            # not describe_cluster: where the broker names no broker, as one does that is busy starting, librdkafka 2.16 aborts
            # the process (rd_kafka_admin_response_parse)
            if known := client.list_topics(timeout=answer_seconds).cluster_id:
                return str(known)
        except KafkaException as err:
            why = str(err)
        client.poll(0)  # its errors are heard in here
        if refused.remedy:
            raise LogUnavailable(f"{settings.kafka_bootstrap}: {refused.remedy}")
        if time.monotonic() > deadline:
            raise LogUnavailable(
                f"{settings.kafka_bootstrap}: {why}; start the broker or correct SLUICE_KAFKA_BOOTSTRAP"
            )
        time.sleep(0.2)
        answer_seconds = min(answer_seconds * 2, 5.0)


def watermarks(settings: Settings, topics: Iterable[str]) -> dict[Part, tuple[int, int]]:
    """(topic with prefix, partition) → (first offset kept, next to be written), all at once. Raises LogUnavailable."""
    client, deadline = admin(settings), time.monotonic() + SETTLING_SECONDS
    names = [settings.topic(topic) for topic in topics]
    while True:
        try:
            return _marks(client, names)
        except KafkaException as err:
            # a topic that was just made, or whose leader moves, has no leader for a moment
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
