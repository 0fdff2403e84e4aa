"""The setting SLUICE_SHARDS: which partitions of the per-repo topics belong to which database."""

import re
from dataclasses import dataclass
from functools import cache

from schemas.endpoints import is_postgresql

RANGE = re.compile(r"(\d+)(?:-(\d+))?=(\S+)")


@dataclass(frozen=True, slots=True)
class ShardRange:
    """Partitions `first` to `last`, and the URL of their database."""

    first: int
    last: int
    url: str

    @property
    def name(self) -> str:
        return f"{self.first}-{self.last}"


@cache
def shard_ranges(text: str) -> tuple[ShardRange, ...]:
    """The ranges, in order; () for ''. Raises ValueError unless they cover all partitions from 0, each once."""
    found = []
    for number, part in enumerate(text.split(), 1):
        match = RANGE.fullmatch(part)
        if match is None or not is_postgresql(match[3]):
            raise ValueError(f"part {number} is not FIRST-LAST=URL; write it as 0-15=postgresql://USER@HOST/NAME")
        found.append(ShardRange(int(match[1]), int(match[2] or match[1]), match[3]))
    following = 0
    for one in found:
        if one.first != following or one.last < one.first:
            raise ValueError(f"{one.name} does not begin at {following}; give all partitions once, in ascending order")
        following = one.last + 1
    if len({one.url for one in found}) < len(found):
        raise ValueError("two ranges have the same database; give each its own")
    return tuple(found)
