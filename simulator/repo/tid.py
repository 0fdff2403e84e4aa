"""TIDs (sortable 13-character identifiers) and the simulated clock that issues them.

Each tick advances the clock by 1 to 99 microseconds, drawn from the seed. The clock starts an hour before the epoch of the
network. It stays behind the real clock for millions of commits, so that no rev is in the future.
"""

import itertools
import random

_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_TRIPLES = ["".join(chars) for chars in itertools.product(_ALPHABET, repeat=3)]


def tid(micros: int, clock_id: int = 0) -> str:
    """The TID of a time, in microseconds since 1970, and a clock id below 1024."""
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
        """Advance the clock. Returns the time in microseconds since 1970."""
        self.now_micros += 1 + int(self._random.random() * 99)
        return self.now_micros

    def next_tid(self) -> str:
        """A TID greater than all TIDs before."""
        return tid(self.tick())
