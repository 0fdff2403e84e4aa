"""Negative answers: how long a peer that failed is not asked again, longer with each failure. Pure, no clock, bounded.

`now` in seconds. A peer is a DID, or a host with all its DIDs.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

from steps.backoff import backoff_seconds

W = TypeVar("W")

LONGEST_SECONDS = 3600.0
ENTRIES = 20_000


class Cooldowns(Generic[W]):
    """Peers that failed, why (`W`), and until when that holds. The oldest are forgotten."""

    def __init__(self, first_seconds: float) -> None:
        self._first = first_seconds
        self._failed: OrderedDict[str, tuple[W, float, int]] = OrderedDict()  # why, until, failures in a row

    def __len__(self) -> int:
        return len(self._failed)

    def why(self, peer: str, now: float) -> W | None:
        """Why the peer is not to be asked now; None if it may be."""
        entry = self._failed.get(peer)
        return entry[0] if entry is not None and entry[1] > now else None

    def failed(self, peer: str, why: W, now: float, at_least: float = 0.0) -> float:
        """One more failure; when its cooldown ends: the first one's, doubled with each in a row, `at_least` what the peer named."""
        failures = self._failed[peer][2] + 1 if peer in self._failed else 1
        seconds = max(backoff_seconds(failures, self._first, LONGEST_SECONDS), min(at_least, LONGEST_SECONDS))
        return self._put(peer, why, now + seconds, failures)

    def busy(self, peer: str, why: W, now: float, seconds: float) -> float:
        """The peer was not asked for lack of a permit, which is no failure of its own; when to ask it."""
        return self._put(peer, why, now + seconds, self._failed[peer][2] if peer in self._failed else 0)

    def succeeded(self, peer: str) -> None:
        """The next failure is a first one."""
        self._failed.pop(peer, None)

    def ask_again(self, peer: str) -> None:
        """There is news of the peer: it may be asked now. Its failures still count."""
        entry = self._failed.get(peer)
        if entry is not None:
            self._failed[peer] = entry[0], 0.0, entry[2]

    def _put(self, peer: str, why: W, until: float, failures: int) -> float:
        self._failed[peer] = why, until, failures
        self._failed.move_to_end(peer)
        while len(self._failed) > ENTRIES:
            self._failed.popitem(last=False)
        return until
