"""Offsets of upstreams and of consumer groups: list, set, reset (`sluice cursors`, B9).

A running flow holds its position in memory and would overwrite a change, so a change is refused while it runs. The index's offsets in
`sluice.stream_offset` are authoritative; its group's offsets in the broker follow. A change that moves the index forward skips
messages: it is recorded as a loss, which a new listing resolves.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psycopg
from confluent_kafka import ConsumerGroupState, ConsumerGroupTopicPartitions, KafkaException, TopicPartition

from connectors.kafka.log import ANSWER_SECONDS, LogUnavailable, Part, admin, answers, unless_moving
from connectors.kafka.offsets import GROUP_TOPICS, Offsets, PartitionLag
from connectors.postgres.connection import connect, own_transaction, tuple_database
from connectors.postgres.shards import Shards
from schemas.errors import OperatorError
from schemas.flows import LIST_REPOS
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import DEAD_LETTER

SQL = queries("cursor")
UPSTREAM_FLOWS = ("firehose", "labels", LIST_REPOS)
"""Flows with a position at each upstream."""
TOPICS = {**GROUP_TOPICS, "dead-letters": (DEAD_LETTER,)}


def lags(settings: Settings) -> list[PartitionLag]:
    """The lag of every group in each of its partitions. Raises LogUnavailable, psycopg.Error."""
    with connect(settings.database, "sluice cursors") as db:
        return Offsets(settings).lags(db)


def as_row(one: PartitionLag) -> dict[str, Any]:
    """A row for the table and for `--json`. `state` names a problem, if there is one."""
    state = "past the end" if one.past_end else f"lost {one.lost}" if one.lost else ""
    return {**asdict(one), "lag": one.lag, "state": state}


def check_position(flow: str, position: str) -> None:
    """Raise OperatorError for a position of the wrong form. The cursor of a listing may be any text."""
    if flow != LIST_REPOS and not (position.isascii() and position.isdigit()):
        raise OperatorError(f"{position!r} is not a sequence number; {flow} needs one")


def set_upstream(settings: Settings, flow: str, upstream: str, position: str | None) -> str | None:
    """Set a flow's position at an upstream; None removes it. Returns the old position. Raises OperatorError."""
    if position is not None:
        check_position(flow, position)
    with connect(settings.database, "sluice cursors") as db:
        row = db.execute(SQL["sessions"], {"name": f"sluice {flow} cursor"}).fetchone()
        if row is not None and row[0]:
            raise OperatorError(f"{flow} is running and would overwrite this; stop it first")
        names = {"flow": flow, "upstream": upstream}
        before = db.execute(SQL["find"], names).fetchone()
        if before is None:
            raise OperatorError(f"{flow} has no cursor for {upstream}; `sluice cursors list` shows all cursors")
        if position is None:
            db.execute(SQL["forget"], names)
        else:
            db.execute(SQL["set_position"], {**names, "position": position})
        return str(before[0])


def set_group(
    settings: Settings, group: str, topic: str, wanted: Mapping[int, int] | str
) -> list[tuple[Part, int, int]]:
    """Move a group in a topic, to an offset per partition, or to the log's "start" or "end". Returns (part, from, to) of each.

    Raises OperatorError for offsets outside the log and while the group has members; LogUnavailable, psycopg.Error.
    """
    if topic not in TOPICS[group]:
        raise OperatorError(f"{group} does not read {topic}; it reads {', '.join(TOPICS[group])}")
    offsets = Offsets(settings)
    _refuse_members(settings, group)
    parts = offsets.parts([topic])
    starts, ends = offsets.starts(parts), offsets.ends(parts)
    with connect(settings.database, "sluice cursors") as db:
        before = offsets.settled(db, group, parts)
        to = _targets(topic, wanted, starts, ends)
        moves = [(part, before.get(part, starts[part]), to[part]) for part in sorted(to)]
        if group == "index":
            _move_index(settings, db, offsets.cluster, moves)
    _alter(settings, group, to)
    return moves


def _targets(
    topic: str, wanted: Mapping[int, int] | str, starts: Mapping[Part, int], ends: Mapping[Part, int]
) -> dict[Part, int]:
    if isinstance(wanted, str):
        return dict(starts if wanted == "start" else ends)
    to = {(topic, number): offset for number, offset in wanted.items()}
    for part, offset in to.items():
        if part not in starts:
            raise OperatorError(f"{topic} has no partition {part[1]}")
        if not starts[part] <= offset <= ends[part]:
            raise OperatorError(f"{part[1]}:{offset}: the log of {topic} has offsets {starts[part]} to {ends[part]}")
    return to


def _move_index(
    settings: Settings, db: psycopg.Connection[Any], cluster: str, moves: list[tuple[Part, int, int]]
) -> None:
    """Record what is skipped, then move: with one database in one transaction, else in each shard's own."""
    with own_transaction(db):
        for (topic, number), begin, end in moves:
            if end > begin:
                gap = {"upstream": f"log:{settings.topic(topic)}/{number}", "from_seq": begin, "to_seq": end}
                db.execute(SQL["note_skip"], gap)
        if not settings.shards:
            _set_offsets(settings, db, cluster, moves)
    if settings.shards:
        shards = Shards(settings, lambda one: tuple_database(one, "sluice cursors"))
        for number, shard in enumerate(shards.all()):
            with own_transaction(shard()):
                mine = [move for move in moves if shards.of_partition(move[0][1]) == number]
                _set_offsets(settings, shard(), cluster, mine)
            shard.close()


def _set_offsets(
    settings: Settings, db: psycopg.Connection[Any], cluster: str, moves: list[tuple[Part, int, int]]
) -> None:
    for (topic, number), _, end in moves:
        name = settings.topic(topic)
        values = {"cluster": cluster, "group": settings.group("index"), "topic": name, "part": number, "next": end}
        db.execute(SQL["set_offset"], values)


def _refuse_members(settings: Settings, group: str) -> None:
    name, client = settings.group(group), admin(settings)  # keep a reference: a garbage-collected client never answers
    try:
        described: Any = unless_moving(
            lambda: answers(client.describe_consumer_groups([name], request_timeout=ANSWER_SECONDS))
        )[name]
    except KafkaException as err:
        if err.args[0].code() == err.args[0].GROUP_ID_NOT_FOUND:
            return
        raise LogUnavailable(f"{name}: {err}") from err
    if described.state not in (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD):
        raise OperatorError(f"{group} has {len(described.members)} members in the group {name}; stop them first")


def _alter(settings: Settings, group: str, to: Mapping[Part, int]) -> None:
    name, client = settings.group(group), admin(settings)
    places = [TopicPartition(settings.topic(topic), number, offset) for (topic, number), offset in to.items()]
    request = ConsumerGroupTopicPartitions(name, places)
    try:
        unless_moving(lambda: answers(client.alter_consumer_group_offsets([request], request_timeout=ANSWER_SECONDS)))
    except KafkaException as err:
        raise LogUnavailable(f"{name}: {err}") from err
