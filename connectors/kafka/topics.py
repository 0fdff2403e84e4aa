"""Topics: schemas/topics.yml → the broker. `diff` lists differences, `apply` creates topics and updates their settings.

A partition count is never changed, because partition k of every per-repo topic must have the same repos. Nothing is deleted.
Raises LogUnavailable, and OperatorError if a count differs.
"""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from connectors.kafka.log import LATE_SECONDS, LogUnavailable, admin, answers, unless_moving
from schemas.errors import OperatorError
from schemas.settings import Settings

ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Topic:
    """The desired state of a topic; `name` includes the prefix."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between broker and declaration. `what`: "missing", "partitions" or the name of a topic setting."""

    topic: str
    what: str
    have: str
    want: str

    def __str__(self) -> str:
        if self.what == "missing":
            return f"{self.topic}: missing, to be created with {self.want}"
        return f"{self.topic}: {self.what} is {self.have}, should be {self.want}"


def declared(settings: Settings) -> list[Topic]:
    """The topics of schemas/topics.yml, with the partitions and the replication of the settings."""
    document = yaml.safe_load((files("schemas") / "topics.yml").read_text("utf-8"))
    common: dict[str, Any] = document["defaults"]["config"]
    # acks=all fails if min.insync.replicas exceeds the number of replicas
    insync = min(int(common["min.insync.replicas"]), settings.kafka_replication)
    found = []
    for name, topic in document["topics"].items():
        config = common | {"min.insync.replicas": insync, "retention.ms": topic["retention_ms"]}
        found.append(
            Topic(
                settings.topic(name),
                settings.kafka_partitions if topic["per_repo"] else 1,
                settings.kafka_replication,
                {key: str(value) for key, value in config.items()},
            )
        )
    return found


def diff(settings: Settings) -> list[Difference]:
    """The differences that `apply` would remove, and partition counts, which it refuses to change."""
    client = admin(settings)
    try:
        known = client.list_topics(timeout=ANSWER_SECONDS / 3).topics
    except KafkaException as err:
        raise _unreachable(settings, err) from err
    found = []
    present = []
    for topic in declared(settings):
        if topic.name not in known:
            found.append(Difference(topic.name, "missing", "", f"{topic.partitions} partitions"))
            continue
        present.append(topic)
        have = len(known[topic.name].partitions)
        if have != topic.partitions:
            found.append(Difference(topic.name, "partitions", str(have), str(topic.partitions)))
    return found + _config_differences(client, settings, present)


def apply(settings: Settings) -> list[Difference]:
    """Apply the declaration; returns the changes. Raises OperatorError, before any change, if a partition count differs."""
    differences = diff(settings)
    refused = [difference for difference in differences if difference.what == "partitions"]
    if refused:
        first = refused[0]
        raise OperatorError(
            f"SLUICE_KAFKA_PARTITIONS is {first.want}, but topic {first.topic} has {first.have} partitions, which never change;"
            f" set SLUICE_KAFKA_PARTITIONS={first.have}, or use another SLUICE_KAFKA_TOPIC_PREFIX"
        )
    client = admin(settings)
    by_name = {topic.name: topic for topic in declared(settings)}
    _create(client, settings, [by_name[d.topic] for d in differences if d.what == "missing"])
    _alter(client, settings, [d for d in differences if d.what != "missing"])
    return differences


def _unreachable(settings: Settings, err: Exception) -> LogUnavailable:
    return LogUnavailable(
        f"SLUICE_KAFKA_BOOTSTRAP: no broker answers at {settings.kafka_bootstrap} ({err}); start it or correct it"
    )


def _config_differences(client: AdminClient, settings: Settings, topics: list[Topic]) -> list[Difference]:
    if not topics:
        return []
    resources = {topic.name: ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics}
    try:
        described = unless_moving(
            lambda: answers(client.describe_configs(list(resources.values()), request_timeout=ANSWER_SECONDS))
        )
    except KafkaException as err:
        raise _unreachable(settings, err) from err
    found = []
    for topic in topics:
        have = described[resources[topic.name]]
        for key, want in sorted(topic.config.items()):
            value = have[key].value if key in have else None
            # a setting that the broker does not support (Redpanda: min.insync.replicas) is no difference
            if value is not None and value != want:
                found.append(Difference(topic.name, key, value, want))
    return found


def _create(client: AdminClient, settings: Settings, topics: list[Topic]) -> None:
    if not topics:
        return
    wanted = [
        NewTopic(t.name, num_partitions=t.partitions, replication_factor=t.replication, config=t.config) for t in topics
    ]
    for name, made in client.create_topics(wanted, operation_timeout=ANSWER_SECONDS).items():
        try:
            answers({name: made})
        except KafkaException as err:
            code = err.args[0].code()
            if code == KafkaError.TOPIC_ALREADY_EXISTS:
                continue  # created concurrently by another process
            if code == KafkaError.INVALID_REPLICATION_FACTOR:
                raise OperatorError(
                    f"topic {name}: {err.args[0].str()}; set SLUICE_KAFKA_REPLICATION to the number of brokers, or fewer"
                ) from err
            raise LogUnavailable(f"topic {name} cannot be created: {err.args[0].str()}") from err
    _await_leaders(client, topics)


def _await_leaders(client: AdminClient, topics: list[Topic]) -> None:
    """Wait until every new partition has a leader, which takes a moment after the creation. Raises LogUnavailable."""
    deadline = time.monotonic() + ANSWER_SECONDS
    waiting = [TopicPartition(topic.name, part) for topic in topics for part in range(topic.partitions)]
    while True:
        futures = client.list_offsets(dict.fromkeys(waiting, OffsetSpec.latest()), request_timeout=ANSWER_SECONDS)
        waiting = [place for place, future in futures.items() if not _answered(future)]
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise LogUnavailable(f"topic {waiting[0].topic} was created but has no leader; are all brokers up?")
        time.sleep(0.1)


def _answered(future: Future[Any]) -> bool:
    try:
        return future.exception(ANSWER_SECONDS + LATE_SECONDS) is None
    except TimeoutError:
        return False


def _alter(client: AdminClient, settings: Settings, differences: list[Difference]) -> None:
    by_topic: dict[str, list[ConfigEntry]] = {}
    for difference in differences:
        entry = ConfigEntry(difference.what, difference.want, incremental_operation=AlterConfigOpType.SET)
        by_topic.setdefault(difference.topic, []).append(entry)
    if not by_topic:
        return
    resources = [
        ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries) for name, entries in by_topic.items()
    ]
    for resource, done in client.incremental_alter_configs(resources, request_timeout=ANSWER_SECONDS).items():
        try:
            answers({resource: done})
        except KafkaException as err:
            raise LogUnavailable(f"topic {resource.name} cannot be changed: {err.args[0].str()}") from err
