"""Cooldowns: the time without requests to a peer that failed, longer with each failure in a row. Pure, bounded.

`now` is in seconds. A peer is a DID, or a host with all its DIDs.
"""

from typing import Generic, TypeVar

from cachetools import FIFOCache

from steps.backoff import backoff_seconds

W = TypeVar("W")

LONGEST_SECONDS = 3600.0
ENTRIES = 20_000


class Cooldowns(Generic[W]):
    """The last ENTRIES peers that failed, with the reason (`W`) and the end of the cooldown."""

    def __init__(self, first_seconds: float) -> None:
        self._first = first_seconds
        self._failed: FIFOCache[str, tuple[W, float, int]] = FIFOCache(ENTRIES)  # reason, end, failures in a row

    def __len__(self) -> int:
        return len(self._failed)

    def why(self, peer: str, now: float) -> W | None:
        """The reason of the peer's cooldown; None if it has none now."""
        entry = self._failed.get(peer)
        return entry[0] if entry is not None and entry[1] > now else None

    def failed(self, peer: str, why: W, now: float, at_least: float = 0.0) -> float:
        """Record a failure; returns the end of the cooldown, whose length doubles with each failure in a row.

        `at_least`: the seconds that the peer asked for. LONGEST_SECONDS bounds both.
        """
        failures = self._failed[peer][2] + 1 if peer in self._failed else 1
        seconds = max(backoff_seconds(failures, self._first, LONGEST_SECONDS), min(at_least, LONGEST_SECONDS))
        return self._put(peer, why, now + seconds, failures)

    def busy(self, peer: str, why: W, now: float, seconds: float) -> float:
        """Start a cooldown because no permit was free; not a failure. Returns its end."""
        return self._put(peer, why, now + seconds, self._failed[peer][2] if peer in self._failed else 0)

    def succeeded(self, peer: str) -> None:
        """Reset the failures in a row."""
        self._failed.pop(peer, None)

    def ask_again(self, peer: str) -> None:
        """End the cooldown, because the peer may have changed. Its failures in a row still count."""
        entry = self._failed.get(peer)
        if entry is not None:
            self._failed[peer] = entry[0], 0.0, entry[2]

    def _put(self, peer: str, why: W, until: float, failures: int) -> float:
        self._failed[peer] = why, until, failures
        return until
