"""`sluice cursors list|set|reset`: where upstreams are read up to, and where consumer groups stand (B9).

A flow that runs holds its position and would write over what is set, so both are refused while it does. The index's
positions in `sluice.stream_offset` are authoritative; its group's offsets in the broker follow. Stepping the index over
messages is a loss: it is recorded, and answered with a re-list.
"""

from collections.abc import Mapping
from typing import Any

import psycopg
from confluent_kafka import ConsumerGroupState, ConsumerGroupTopicPartitions, KafkaException, TopicPartition

from connectors.kafka.log import LogUnavailable, Part, admin, answers
from connectors.kafka.offsets import ANSWER_SECONDS, GROUP_TOPICS, Positions, Standing
from connectors.postgres.connection import connect, own_transaction
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.sql import queries
from schemas.topics import DEAD_LETTER

SQL = queries("cursor")
FLOWS = ("firehose", "labels", "list_repos")
TOPICS = {**GROUP_TOPICS, "dead-letters": (DEAD_LETTER,)}


def standings(settings: Settings) -> list[Standing]:
    """Every group in every partition. Raises LogUnavailable, psycopg.Error."""
    with connect(settings.database, "sluice cursors") as db:
        return Positions(settings).standings(db)


def as_row(standing: Standing) -> dict[str, Any]:
    """A row of the table; `state` says what is wrong."""
    state = "past the end" if standing.past_end else f"lost {standing.lost}" if standing.lost else ""
    return {
        "group": standing.group,
        "topic": standing.topic,
        "partition": standing.partition,
        "start": standing.start,
        "position": standing.position,
        "end": standing.end,
        "lag": standing.lag,
        "state": state,
    }


def check_position(flow: str, position: str) -> None:
    """Raise OperatorError for a position that a flow cannot have; a listing's cursor may be any text."""
    if flow != "list_repos" and not (position.isascii() and position.isdigit()):
        raise OperatorError(f"{position!r} is no sequence number, which the position of {flow} is")


def set_upstream(settings: Settings, flow: str, upstream: str, position: str | None) -> str | None:
    """Set, or (None) forget, a flow's position at an upstream; the one it had. Raises OperatorError."""
    if position is not None:
        check_position(flow, position)
    with connect(settings.database, "sluice cursors") as db:
        row = db.execute(SQL["sessions"], {"name": f"sluice {flow} cursor"}).fetchone()
        if row is not None and row[0]:
            raise OperatorError(f"{flow} runs and would write over this; stop it first")
        names = {"flow": flow, "upstream": upstream}
        before = db.execute(SQL["find"], names).fetchone()
        if before is None:
            raise OperatorError(f"{flow} has no cursor of {upstream}; `sluice cursors list` shows those there are")
        if position is None:
            db.execute(SQL["forget"], names)
        else:
            db.execute(SQL["set_position"], {**names, "position": position})
        return str(before[0])


def set_group(
    settings: Settings, group: str, topic: str, wanted: Mapping[int, int] | str
) -> list[tuple[Part, int, int]]:
    """Move a group in a topic: partition → offset, or to the log's "start" or "end". (part, from, to) of each.

    Raises OperatorError for offsets outside the log and while the group has members; LogUnavailable, psycopg.Error.
    """
    if topic not in TOPICS[group]:
        raise OperatorError(f"{group} does not read {topic}; it reads {', '.join(TOPICS[group])}")
    positions = Positions(settings)
    _refuse_members(settings, group)
    parts = positions.parts([topic])
    starts, ends = positions.starts(parts), positions.ends(parts)
    with connect(settings.database, "sluice cursors") as db:
        stood = positions.committed(group, parts) | positions.stored(db, group)
        to = _targets(topic, wanted, starts, ends)
        moves = [(part, stood.get(part, starts[part]), to[part]) for part in sorted(to)]
        if group == "index":
            _move_index(settings, db, positions.cluster, moves)
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
            raise OperatorError(f"{part[1]}:{offset}: the log of {topic} has {starts[part]} to {ends[part]}")
    return to


def _move_index(
    settings: Settings, db: psycopg.Connection[Any], cluster: str, moves: list[tuple[Part, int, int]]
) -> None:
    with own_transaction(db):
        for (topic, number), begin, end in moves:
            name = settings.topic(topic)
            values = {"cluster": cluster, "group": settings.group("index"), "topic": name, "part": number, "next": end}
            db.execute(SQL["set_offset"], values)
            if end > begin:
                gap = {"upstream": f"log:{name}/{number}", "from_seq": begin, "to_seq": end}
                db.execute(SQL["note_skip"], gap)


def _refuse_members(settings: Settings, group: str) -> None:
    name, client = settings.group(group), admin(settings)  # kept: a client that is collected never answers
    try:
        described: Any = answers(client.describe_consumer_groups([name], request_timeout=ANSWER_SECONDS))[name]
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
        answers(client.alter_consumer_group_offsets([request], request_timeout=ANSWER_SECONDS))
    except KafkaException as err:
        raise LogUnavailable(f"{name}: {err}") from err
