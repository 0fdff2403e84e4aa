"""The flow's thread rests while it has nothing to do: `rest(seconds)` returns at once when another thread calls `ring()`.

A process runs one flow, so there is one bell. Whatever hands work to the flow's thread rings it after the hand-over. A rest also ends
by itself, so that pauses and timers are noticed without a ring.
"""

import threading
import time

REST_SECONDS = 0.5
IDLE_SECONDS = 2.0
"""A rest with nothing left to commit."""
GATHER_SECONDS = 0.005
"""After a ring: more is about to arrive, and a batch of one item costs as much as a batch of many."""

_bell = threading.Event()


def ring() -> None:
    if not _bell.is_set():  # cheaper than `set`, which takes a lock
        _bell.set()


def rest(seconds: float = REST_SECONDS) -> bool:
    """Wait for a ring since the last rest, at most so long, and gather. Whether it rang."""
    rang = _bell.wait(seconds)
    if rang:
        _bell.clear()
        time.sleep(GATHER_SECONDS)
    return rang
