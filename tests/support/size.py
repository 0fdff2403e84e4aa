"""How large the sweeps are: schedules, mutants, chaos, soak, fuzzing. `TEST_SIZE=long` (`make test-long`) runs them whole."""

import os
from typing import TypeVar

N = TypeVar("N")

LONG = os.environ.get("TEST_SIZE") == "long"


def sized(small: N, whole: N) -> N:
    """`small` in `make test`, `whole` in `make test-long`."""
    return whole if LONG else small
