"""The index's positions in the log (`sluice.stream_offset`), read and moved in its own transactions."""

from collections.abc import Mapping
from typing import Any

from connectors.kafka.log import Part
from connectors.postgres.main_database import MainDatabase
from flows.index.projection import Connection
from schemas.sql import queries

SQL = queries("index")

Spans = Mapping[Part, tuple[int, int]]
"""Partition → (first offset, next offset)."""


class PartitionLost(Exception):
    """Another worker has moved this partition's offset, so this one must stop writing it."""


class PositionAheadOfLog(Exception):
    """The stored position is past the end of the log: it is another log, or one that lost data. Never reset silently."""


def start_positions(
    db: Connection, main: MainDatabase, scope: Mapping[str, str], marks: Mapping[Part, tuple[int, int]], backfill: str
) -> dict[Part, int]:
    """Where to read each partition, given its (log start, log end). Records positions that are new, or lost to retention.

    `main`: where gaps are recorded before positions move. `backfill`: name of the topic of
    attempts. Raises PositionAheadOfLog.
    """
    values = {**scope, **_columns(marks)}
    new = db.execute(SQL["start_offsets"], {**values, "nexts": [low for low, _ in marks.values()]}).fetchall()
    if new:
        begun = {"topics": [row[0] for row in new], "parts": [row[1] for row in new]}
        gone = {(topic, part): at for topic, part, at in db.execute(SQL["former_log"], {**scope, **begun})}
        if gone:
            _note_gaps(main, "the log is another one", gone, dict.fromkeys(gone))
            db.execute(SQL["expire_outcomes"], {"parts": [part for topic, part in gone if topic == backfill]})
    starts: dict[Part, int] = {(topic, part): at for topic, part, at in db.execute(SQL["offsets"], values)}
    for part, at in starts.items():
        if at > marks[part][1]:
            raise PositionAheadOfLog(
                f"{part[0]}/{part[1]}: the database has read up to {at}, but the log ends at {marks[part][1]}; this is"
                " another log or it lost data. Restore it, or start over with `sluice cursors reset` and a fresh database"
            )
    lost = {part: marks[part][0] for part, at in starts.items() if at < marks[part][0]}
    if lost:
        _note_gaps(main, "retention passed the index", dict.fromkeys(lost), lost)
        db.execute(SQL["lose_offsets"], {**scope, **_columns(lost), "nexts": list(lost.values())})
    return starts | lost


def move(db: Connection, scope: Mapping[str, str], spans: Spans) -> None:
    """Move each offset from the begin of its span to the end. Raises PartitionLost if one is not at the begin."""
    begins, ends = [begin for begin, _ in spans.values()], [end for _, end in spans.values()]
    values: dict[str, Any] = {**scope, **_columns(spans), "froms": begins, "nexts": ends}
    moved = db.execute(SQL["move_offsets"], values).rowcount
    if moved != len(spans):
        raise PartitionLost(f"{len(spans) - moved} of {len(spans)} partitions were moved by another worker")


def _note_gaps(
    main: MainDatabase, reason: str, begins: Mapping[Part, int | None], ends: Mapping[Part, int | None]
) -> None:
    values = {**_columns(begins), "froms": list(begins.values()), "tos": list(ends.values()), "reason": reason}
    main.execute(SQL["note_log_gaps"], values)


def _columns(parts: Mapping[Part, object]) -> dict[str, list[Any]]:
    return {"topics": [part[0] for part in parts], "parts": [part[1] for part in parts]}
