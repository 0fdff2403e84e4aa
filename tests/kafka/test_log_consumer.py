"""Members of a group on a real broker: what a rebalance must not take away."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from connectors.kafka.consumer import GroupConsumer
from connectors.kafka.producer import LogProducer, Out
from schemas.settings import load
from tests.support.flow_process import create_topics, wait_until

TOPIC = "repo_backfill"


def test_a_partition_that_was_paused_when_it_went_away_is_read_when_it_comes_back(log: str) -> None:
    """G6, B8: a worker without room pauses; the partition went to another worker and came back, still paused (chaos, seed 25)."""
    prefix = f"t{secrets.token_hex(4)}-"
    create_topics(log, prefix, 2)
    settings = load(kafka_bootstrap=log, database="postgresql://nobody/none", kafka_topic_prefix=prefix)
    mine, other = GroupConsumer(settings, "backfill", [TOPIC]), GroupConsumer(settings, "backfill", [TOPIC])

    def until(what: Callable[[], bool], *members: GroupConsumer) -> None:
        wait_until(lambda: [member.poll(10, 0.05) for member in members] and what())

    until(lambda: len(mine.assigned) == 2, mine)
    mine.pause(mine.assigned)
    until(lambda: len(mine.assigned) == len(other.assigned) == 1, mine, other)
    mine.resume(mine.assigned)
    other.close()
    until(lambda: len(mine.assigned) == 2, mine)
    LogProducer(settings).send([Out(TOPIC, f"did:plc:{number}", b"x") for number in range(40)])
    read: set[tuple[int | None, int | None]] = set()  # twice, if the group has to gather anew

    def all_read() -> bool:
        read.update((message.partition(), message.offset()) for message in mine.poll(10, 0.1))
        return len(read) == 40

    wait_until(all_read, what=lambda: f"{len(read)}, only of partitions { {part for part, _ in read} }")
    assert {part for part, _ in read} == {0, 1}
    mine.close()
