"""The arguments of `sluice replay`: offsets and times → the first and last offset of each partition."""

from collections.abc import Sequence

from confluent_kafka.admin import OffsetSpec

from connectors.kafka.offsets import NO_OFFSET, Offsets
from ops.replay import GROUPS
from schemas.errors import OperatorError
from schemas.patterns import place_of, time_of
from schemas.settings import Settings


def partition_offsets(option: str, values: Sequence[str]) -> dict[int, int]:
    """Parse `PARTITION:OFFSET` arguments of an option. Raises OperatorError."""
    found: dict[int, int] = {}
    for value in values:
        place = place_of(value)
        if place is None:
            raise OperatorError(f"{option} {value}: write PARTITION:OFFSET")
        found[place[0]] = place[1]
    return found


def spans_asked(
    settings: Settings, topic: str, from_offset: Sequence[str], from_time: str, to: Sequence[str]
) -> tuple[dict[int, int], dict[int, int]]:
    """Starts and ends of a replay, from the arguments of the command. Raises OperatorError, LogUnavailable."""
    if topic not in GROUPS:
        raise OperatorError(f"there is no topic {topic!r}; choose one of {', '.join(GROUPS)}")
    if from_offset and from_time:
        raise OperatorError("give only one of --from-offset and --from-time")
    starts = _at_time(settings, topic, "--from-time", from_time) if from_time else {}
    if len(to) == 1 and place_of(to[0]) is None:
        ends = _at_time(settings, topic, "--to", to[0], "PARTITION:OFFSET, or ")
    else:
        ends = partition_offsets("--to", to)
    return starts or partition_offsets("--from-offset", from_offset), ends


def _at_time(settings: Settings, topic: str, option: str, text: str, other: str = "") -> dict[int, int]:
    """In each partition, the offset of the first message at or after this time; the log's end if there is none."""
    seconds = time_of(option, text, other).timestamp()
    offsets = Offsets(settings)
    parts = offsets.parts([topic])
    found, ends = offsets.find(parts, OffsetSpec.for_timestamp(int(seconds * 1000))), offsets.ends(parts)
    return {part[1]: ends[part] if at == NO_OFFSET else at for part, at in found.items()}
