"""A broker whose group coordinator stumbles: commits have no answer, and nothing hangs."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from connectors.kafka import client as broker
from connectors.kafka import consumer as log_consumer
from connectors.kafka import log, offsets
from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.log import LogUnavailable
from connectors.kafka.producer import LogProducer, Out
from flows.backfill import task_feed
from schemas.settings import Settings
from tests.support.coordinator import Coordinator
from tests.support.flow_process import create_topics, group_positions, wait_until

TOPIC = "repo_backfill"
SOON_SECONDS = 10.0  # a commit that waits for its answer takes 20, the time limit of a request, or hangs


@pytest.fixture
def settings(log: str, coordinator: Coordinator) -> Settings:
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, 1)
    return Settings(kafka_bootstrap=coordinator.address, database="postgresql://nobody/none", kafka_topic_prefix=prefix)


@pytest.fixture
def member(settings: Settings) -> Iterator[GroupConsumer]:
    """A member that has its partition and has read what is there."""
    LogProducer(settings).send([Out(TOPIC, f"did:plc:{number}", b"x") for number in range(10)])
    made = GroupConsumer(settings, "backfill", [TOPIC])
    read: list[Any] = []
    wait_until(lambda: read.extend(made.poll(10)) or len(read) >= 10)
    yield made
    made.close()


def committed(log: str, settings: Settings) -> dict[int, int]:
    return group_positions(log, settings.group("backfill"), settings.topic(TOPIC))


def test_a_commit_without_a_response_blocks_nothing(
    member: GroupConsumer, settings: Settings, coordinator: Coordinator, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1: the index hung for ever in a synchronous commit; now it goes on, and the positions follow."""
    monkeypatch.setattr(log_consumer, "COMMIT_SECONDS", 1.0)
    coordinator.swallowing = True
    part = (settings.topic(TOPIC), 0)
    began = time.monotonic()
    for position in range(1, 8):
        member.commit({part: position})
        member.poll(10, 0.05)
    assert time.monotonic() - began < SOON_SECONDS
    wait_until(lambda: member.poll(10) or coordinator.swallowed)  # the fault fired
    coordinator.swallowing = False

    def caught_up() -> bool:
        member.commit({part: 8})
        member.poll(10)
        return committed(log, settings) == {0: 8} and not member._commits._wanted

    wait_until(caught_up, 60)


def test_a_close_waits_for_no_answer_that_does_not_come(
    settings: Settings, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1: librdkafka's own close waits for the answers to its last commits."""
    monkeypatch.setattr(log_consumer, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(broker, "CLOSE_SECONDS", 0.5)
    made = GroupConsumer(settings, "backfill", [TOPIC])
    wait_until(lambda: made.poll(1) or made.assigned)
    coordinator.swallowing = True
    made.commit({(settings.topic(TOPIC), 0): 0})
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < log_consumer.SETTLE_SECONDS + 5.0 + SOON_SECONDS
    wait_until(lambda: coordinator.swallowed)  # the fault fired


def test_the_last_positions_are_confirmed_at_the_end(
    settings: Settings, member: GroupConsumer, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit does not wait, but a close does, for a few seconds: what follows must not read it all again."""
    monkeypatch.setattr(log_consumer, "SETTLE_SECONDS", 60.0)  # a slow broker takes more than a few
    member.commit({(settings.topic(TOPIC), 0): 5})
    member.commit({(settings.topic(TOPIC), 0): 10})
    member.close()
    assert committed(log, settings) == {0: 10}


def test_a_commit_beside_a_waiting_poll_does_not_wait_for_it(
    settings: Settings, member: GroupConsumer, log: str
) -> None:
    """B8: the backfill's flow commits while another thread polls. It stood still for as long as no task arrived."""
    reader = task_feed.LogFeed.__new__(task_feed.LogFeed)
    reader._resync = reader._backlog = task_feed._TopicReader(member)
    poll = threading.Thread(target=member.poll, args=(10, 60.0))
    poll.start()
    began = time.monotonic()
    reader.commit({(settings.topic(TOPIC), 0): 7})
    waited, polling = time.monotonic() - began, poll.is_alive()
    LogProducer(settings).send([Out(TOPIC, "did:plc:last", b"x")])  # ends the poll
    poll.join(60)
    assert polling
    assert waited < SOON_SECONDS
    wait_until(lambda: [member.poll(1, 0.05)] and committed(log, settings) == {0: 7})


class _Message:
    def __init__(self, code: int) -> None:
        self._error = KafkaError(code)

    def error(self) -> KafkaError:
        return self._error

    def topic(self) -> str:
        return TOPIC

    def value(self) -> bytes:
        return b"what librdkafka says"


class _Client:
    """A consumer that has this error for its reader, or its committer."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.commits: list[Any] = []

    def consume(self, _limit: int, _seconds: float) -> list[_Message]:
        return [_Message(self.code)]

    def commit(self, offsets: Any, asynchronous: bool) -> None:
        assert asynchronous
        self.commits.append(offsets)
        raise KafkaException(KafkaError(self.code))


PASSES = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError._TRANSPORT,
)


def reader(code: int) -> tuple[GroupConsumer, _Client]:
    made, client = GroupConsumer(Settings(), "index", [TOPIC]), _Client(code)
    made._consumer = client  # type: ignore[assignment]
    made.assigned = {(TOPIC, 0)}
    return made, client


@pytest.mark.parametrize("code", PASSES)
def test_errors_that_pass_by_themselves_end_no_flow(code: int) -> None:
    """H1: the index ended on COORDINATOR_LOAD_IN_PROGRESS."""
    made, client = reader(code)
    assert made.poll(10) == []
    made.commit({(TOPIC, 0): 3})
    assert len(client.commits) == 1
    assert made.poll(10) == []


@pytest.mark.parametrize("code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED])
def test_errors_that_an_operator_can_mend_are_raised(code: int) -> None:
    made, _ = reader(code)
    with pytest.raises(LogUnavailable):
        made.poll(10)
    made.commit({(TOPIC, 0): 3})
    with pytest.raises(LogUnavailable):
        made.commit({(TOPIC, 0): 4})


def test_a_topic_may_be_unknown_for_a_moment_and_not_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that starts does not know all its topics yet; one that was never made is an operator's to make."""
    made, _ = reader(KafkaError.UNKNOWN_TOPIC_OR_PART)
    assert made.poll(10) == made.poll(10) == []
    monkeypatch.setattr(log_consumer, "UNKNOWN_SECONDS", 0.0)
    with pytest.raises(LogUnavailable):
        made.poll(10)


def test_one_commit_at_a_time_carries_the_newest_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: however long the coordinator is silent, one request is on its way, and nothing piles up behind it."""
    sent: list[dict[int, int]] = []

    class Silent(_Client):
        def commit(self, offsets: Any, asynchronous: bool) -> None:
            sent.append({one.partition: one.offset for one in offsets})
            self.last = offsets

    monkeypatch.setattr(log_consumer, "AGAIN_SECONDS", 0.0)
    made, client = reader(0)
    made._consumer = client = Silent(0)  # type: ignore[assignment]
    made.assigned.add((TOPIC, 1))
    for position in range(1, 1000):
        made.commit({(TOPIC, 0): position})
    assert sent == [{0: 1}]
    made._commits.answered(None, client.last)
    made.commit({(TOPIC, 1): 7})
    assert sent == [{0: 1}, {0: 999, 1: 7}]
    made._commits.answered(KafkaError(KafkaError.NOT_COORDINATOR), client.last)
    made.commit({})
    assert sent[-1] == {0: 999, 1: 7}
    late = client.last
    monkeypatch.setattr(log_consumer, "COMMIT_SECONDS", -1.0)
    made.commit({(TOPIC, 0): 1000})
    made.commit({})
    assert sent[-1] == {0: 1000, 1: 7}
    made._commits.answered(None, late)  # of the one that counted as lost: it confirms nothing of this one
    assert made._commits._sent == {(TOPIC, 0): 1000, (TOPIC, 1): 7}


def test_a_failed_producer_is_rebuilt(log: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: after a fatal error a producer takes nothing any more."""
    producer = LogProducer(settings.replaced(kafka_bootstrap=log))
    producer.send([Out(TOPIC, "did:plc:one", b"x")])
    broken = producer._producers["zstd"]
    assert isinstance(broken, Producer)

    def refused(*_: object, **__: object) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL))

    class Broken:
        produce = staticmethod(refused)
        purge = staticmethod(lambda: None)
        poll = staticmethod(lambda _: 0)

    producer._producers["zstd"] = Broken()  # type: ignore[assignment]
    with pytest.raises(LogUnavailable):
        producer.send([Out(TOPIC, "did:plc:two", b"x")])
    producer.send([Out(TOPIC, "did:plc:three", b"x")])
    assert isinstance(producer._producers["zstd"], Producer)


class _Moving:
    """A reader of a group's offsets whose coordinator moves: its first answers are these errors."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        assert timeout > 0
        if self.codes:
            raise KafkaException(KafkaError(self.codes.pop(0)))
        return [TopicPartition(place.topic, place.partition, 7) for place in places]

    def close(self) -> None:
        pass


def test_offsets_are_asked_for_again_while_a_coordinator_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: `sluice status` ended with "Not coordinator" during a rebalance. Another error, or one that stays, is reported."""
    monkeypatch.setattr(log, "MOVE_STEP_SECONDS", 0.0)

    def committed(*codes: int) -> dict[tuple[str, int], int]:
        made = offsets.Offsets(Settings())
        made._readers["index"] = _Moving(*codes)  # type: ignore[assignment]
        return made.committed("index", [(TOPIC, 0)])

    assert committed(KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS) == {(TOPIC, 0): 7}
    with pytest.raises(LogUnavailable):
        committed(KafkaError.GROUP_AUTHORIZATION_FAILED)
    monkeypatch.setattr(log, "MOVE_SECONDS", -1.0)
    with pytest.raises(LogUnavailable):
        committed(KafkaError.NOT_COORDINATOR)


class _Electing:
    """An admin client whose first answers for a partition are these errors."""

    def __init__(self, *codes: int) -> None:
        self.codes = list(codes)

    def list_offsets(
        self, places: dict[TopicPartition, Any], request_timeout: float
    ) -> dict[TopicPartition, Future[Any]]:
        assert request_timeout > 0
        futures: dict[TopicPartition, Future[Any]] = {place: Future() for place in places}
        for future in futures.values():
            if self.codes:
                future.set_exception(KafkaException(KafkaError(self.codes.pop(0))))
            else:
                future.set_result(SimpleNamespace(offset=9))
        return futures


def test_offsets_are_asked_for_again_during_an_election(monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: `sluice cursors reset` ended with "Not leader for partition" while a partition changed its leader."""
    monkeypatch.setattr(log, "MOVE_STEP_SECONDS", 0.0)

    def ends(*codes: int) -> dict[tuple[str, int], int]:
        made = offsets.Offsets(Settings())
        made._client = _Electing(*codes)  # type: ignore[assignment]
        return made.ends([(TOPIC, 0), (TOPIC, 1)])

    found = {(TOPIC, 0): 9, (TOPIC, 1): 9}
    assert ends(KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE) == found
    with pytest.raises(LogUnavailable):
        ends(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    monkeypatch.setattr(log, "MOVE_SECONDS", -1.0)
    with pytest.raises(LogUnavailable):
        ends(KafkaError.NOT_LEADER_FOR_PARTITION)
