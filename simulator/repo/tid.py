"""TIDs (sortable 13-character identifiers) and the simulated clock that hands them out.

The clock never goes back and never repeats: each tick moves it on by 1 to 100 microseconds, drawn from the seed.
It starts an hour before the epoch of the network and, at that pace, stays behind the real clock for millions of commits,
so that no reader sees a rev from the future.
"""

from __future__ import annotations

import itertools
import random

_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_TRIPLES = ["".join(chars) for chars in itertools.product(_ALPHABET, repeat=3)]


def tid(micros: int, clock_id: int = 0) -> str:
    """The TID of a moment in microseconds since 1970 and a clock id below 1024."""
    number = micros << 10 | clock_id
    return (
        _ALPHABET[number >> 60 & 15]
        + _TRIPLES[number >> 45 & 32767]
        + _TRIPLES[number >> 30 & 32767]
        + _TRIPLES[number >> 15 & 32767]
        + _TRIPLES[number & 32767]
    )


class SimulatedClock:
    """Strictly increasing microseconds."""

    def __init__(self, start_micros: int, seed: int) -> None:
        self.now_micros = start_micros
        self._random = random.Random(f"{seed}/clock")

    def tick(self) -> int:
        """The next moment, in microseconds since 1970."""
        self.now_micros += 1 + int(self._random.random() * 99)
        return self.now_micros

    def next_tid(self) -> str:
        """A TID greater than every one before it."""
        return tid(self.tick())
