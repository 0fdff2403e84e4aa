"""Rows that nothing can use any more: letters whose message retention removed, and hosts that nobody has asked or named for long.

`Pruning.step()` belongs to whoever leads: a bounded piece each time while there is something to remove, then a look now and
then. A letter without its message can be neither shown nor retried. One that was still open was a loss that nobody looked at,
so it is counted and named in the log. A host that comes back has its row again with the first request.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors import metrics
from control.dead_letters import TOPIC
from control.positions import Positions
from schemas.sql import queries

SQL = queries("dead_letter") | {"prune_hosts": queries("budget")["prune"]}
LOOK_SECONDS = 600.0
PIECE = 2000
HOST_DAYS = 30

logger = logging.getLogger("control")


@dataclass(frozen=True, slots=True)
class Pruned:
    """Rows that a step removed; `open_letters` are among the `letters`."""

    letters: int = 0
    open_letters: int = 0
    hosts: int = 0


class Pruning:
    """See the module. `clock` in seconds."""

    def __init__(self, positions: Positions, clock: Callable[[], float] = time.monotonic) -> None:
        self._positions = positions
        self._clock = clock
        self._next = 0.0

    def step(self, db: psycopg.Connection[Any]) -> Pruned:
        """One piece, if it is time. Raises psycopg.Error and LogUnavailable."""
        if self._clock() < self._next:
            return Pruned()
        starts = self._positions.starts(self._positions.parts([TOPIC]))
        values = {"parts": [part for _, part in starts], "starts": list(starts.values()), "limit": PIECE}
        was_open = [row[0] for row in db.execute(SQL["prune"], values).fetchall()]
        hosts = db.execute(SQL["prune_hosts"], {"days": HOST_DAYS, "limit": PIECE}).rowcount
        if len(was_open) < PIECE and hosts < PIECE:
            self._next = self._clock() + LOOK_SECONDS
        pruned = Pruned(len(was_open), sum(was_open), hosts)
        metrics.LETTERS_EXPIRED.labels("open").inc(pruned.open_letters)
        metrics.LETTERS_EXPIRED.labels("settled").inc(pruned.letters - pruned.open_letters)
        if pruned.open_letters:
            logger.warning("retention removed open dead letters", extra={"letters": pruned.open_letters})
        return pruned
