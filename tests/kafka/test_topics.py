"""`sluice topics`: the broker is made as topics.yml says, except for partition counts, which never change."""

from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from connectors.kafka import topics
from schemas import topics as names_of_topics
from schemas.errors import OperatorError
from schemas.settings import Settings, load
from tests.support.broker import LogScope
from tests.support.flow_process import wait_until


@pytest.fixture
def settings(log_scope: LogScope) -> Iterator[Settings]:
    """Settings of a prefix of this test's own; its topics go with it."""
    chosen = load(
        kafka_bootstrap=log_scope.bootstrap,
        kafka_topic_prefix=log_scope.prefix,
        kafka_partitions=2,
        kafka_replication=1,
    )
    yield chosen
    known = log_scope.admin.list_topics(timeout=60).topics
    log_scope.created += [topic.name for topic in topics.declared(chosen) if topic.name in known]


def alter(scope: LogScope, topic: str, key: str, value: str) -> None:
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for future in scope.admin.incremental_alter_configs([resource]).values():
        future.result(60)


def test_the_constants_are_the_declared_topics() -> None:
    names = {value for name, value in vars(names_of_topics).items() if name.isupper() and isinstance(value, str)}
    declared = topics.declared(load())
    assert {topic.name for topic in declared} == names
    assert {topic.config["max.message.bytes"] for topic in declared} == {str(names_of_topics.MAX_MESSAGE_BYTES)}


def test_declares_topics_of_equal_partitions_and_one_for_the_order_of_all() -> None:
    declared = topics.declared(load(kafka_partitions=32, kafka_replication=3))
    assert {topic.name for topic in declared} == {
        "repo_backfill", "repo_resync", "firehose_live", "firehose_backfill", "label_live", "firehose_sequence", "dead_letter",
    }  # fmt: skip
    assert {topic.name: topic.partitions for topic in declared if topic.partitions != 32} == {"firehose_sequence": 1}
    assert {topic.replication for topic in declared} == {3}
    assert {topic.config["min.insync.replicas"] for topic in declared} == {"2"}
    assert {topic.config["cleanup.policy"] for topic in declared} == {"delete"}
    assert {topic.config["max.message.bytes"] for topic in declared} == {str(16 * 1024 * 1024)}


def test_one_replica_does_not_ask_for_two_in_sync() -> None:
    assert {topic.config["min.insync.replicas"] for topic in topics.declared(load(kafka_replication=1))} == {"1"}


def test_applies_what_is_missing_and_then_finds_no_difference(settings: Settings) -> None:
    assert {difference.what for difference in topics.diff(settings)} == {"missing"}
    assert len(topics.apply(settings)) == 7
    assert topics.diff(settings) == []
    assert topics.apply(settings) == []


def test_a_setting_that_drifted_is_put_back(settings: Settings, log_scope: LogScope) -> None:
    topics.apply(settings)
    alter(log_scope, log_scope.name("label_live"), "retention.ms", "60000")
    drifted = topics.Difference(log_scope.name("label_live"), "retention.ms", "60000", "2592000000")
    wait_until(lambda: topics.diff(settings) == [drifted])  # a broker hears of a change from its controller
    assert topics.apply(settings) == [drifted]
    wait_until(lambda: topics.diff(settings) == [])


def test_a_partition_count_is_never_changed_and_nothing_else_is_then(settings: Settings, log_scope: LogScope) -> None:
    topics.apply(settings)
    alter(log_scope, log_scope.name("label_live"), "retention.ms", "60000")
    more = settings.replaced(kafka_partitions=4)
    with pytest.raises(
        OperatorError, match=r"SLUICE_KAFKA_PARTITIONS is 4, .* has 2 partitions, .*set SLUICE_KAFKA_PARTITIONS=2"
    ):
        topics.apply(more)
    known = log_scope.admin.list_topics(timeout=60).topics
    per_repo = [topic for topic in topics.declared(settings) if topic.partitions > 1]
    assert {len(known[topic.name].partitions) for topic in per_repo} == {2}
    wait_until(lambda: [difference.what for difference in topics.diff(settings)] == ["retention.ms"])


def test_topics_that_are_not_ours_are_left_alone(settings: Settings, log_scope: LogScope) -> None:
    foreign = log_scope.create("of-somebody-else", partitions=3)
    topics.apply(settings)
    assert len(log_scope.admin.list_topics(timeout=60).topics[foreign].partitions) == 3


def test_more_replicas_than_brokers_names_the_setting(settings: Settings) -> None:
    with pytest.raises(OperatorError, match="set SLUICE_KAFKA_REPLICATION"):
        topics.apply(settings.replaced(kafka_replication=3))
