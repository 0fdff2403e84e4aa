"""Durable positions of upstreams: `sluice.cursor`, and beside them, in the same transaction, the losses before them.

One row per (flow, full URL of the upstream). A row whose position cannot be what the flow stored is an error: guessing where
to go on would lose events in silence.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres.connection import alone, own_transaction, tuples
from schemas.settings import Settings
from schemas.sql import queries
from steps.cursor import Gap

SQL = queries("cursor")


class CursorUnreadable(Exception):
    """A stored position is not one of this flow; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A position as it stands in the table; `age_seconds` by the database's clock."""

    position: str
    detail: dict[str, Any]
    age_seconds: float


class CursorStore:
    """Positions of one flow; each method is a transaction of its own. Connects on first use, and again after a lost connection."""

    def __init__(self, settings: Settings, flow: str) -> None:
        self._flow = flow
        self._database = tuples(settings, f"sluice {flow} cursor")
        self.close = self._database.close

    def load(self) -> dict[str, Stored]:
        """Upstream → its position."""
        rows = alone(self._database()).execute(SQL["load"], {"flow": self._flow})
        return {upstream: Stored(position, detail, age) for upstream, position, detail, age in rows}

    def load_sequences(self) -> dict[str, tuple[int, int]]:
        """Upstream → (seq, epoch). Raises CursorUnreadable."""
        found: dict[str, tuple[int, int]] = {}
        for upstream, stored in self.load().items():
            if not (stored.position.isascii() and stored.position.isdigit()):
                raise CursorUnreadable(
                    f"the {self._flow} cursor of {upstream} is {stored.position[:80]!r}, which is no sequence number;"
                    f" correct it with `sluice cursors set {self._flow} {upstream} SEQ`"
                )
            epoch = stored.detail.get("epoch", 0)
            found[upstream] = (int(stored.position), epoch if isinstance(epoch, int) else 0)
        return found

    def save(
        self,
        positions: Mapping[str, int],
        details: Mapping[str, dict[str, Any]],
        gaps: Iterable[Gap] = (),
        *,
        answered: bool = False,
    ) -> None:
        """Make positions durable, and with them the gaps that they pass. `answered`: nothing can fill these gaps."""
        db = self._database()
        with own_transaction(db):
            for gap in gaps:
                note_gap(db, gap, answered=answered)
            for upstream in sorted(positions):
                put(db, self._flow, upstream, str(positions[upstream]), details.get(upstream))

    def caught_up(self, upstreams: Sequence[str], time: str) -> None:
        """These upstreams have nothing more to send: their streams have come to this time."""
        values = {"flow": self._flow, "upstreams": list(upstreams), "time": time}
        alone(self._database()).execute(SQL["caught_up"], values)

    def begin(self, upstream: str, position: int, detail: dict[str, Any], gap: Gap) -> None:
        """The first place of an upstream read from its tip, and the gap before it, if any repo is known already.

        Such a repo may have been fetched before we were connected; only a new listing can tell what it wrote in between.
        """
        db = self._database()
        with own_transaction(db):
            if db.execute(SQL["any_repo"]).fetchone() == (True,):
                note_gap(db, gap)
            put(db, self._flow, upstream, str(position), detail)


def put(
    db: psycopg.Connection[tuple[Any, ...]], flow: str, upstream: str, position: str, detail: dict[str, Any] | None
) -> None:
    """One position, in the caller's transaction."""
    text = None if detail is None else json.dumps(detail)
    db.execute(SQL["save"], {"flow": flow, "upstream": upstream, "position": position, "detail": text})


def note_gap(db: psycopg.Connection[tuple[Any, ...]], gap: Gap, *, answered: bool = False) -> None:
    """Record a loss in `sluice.stream_gap`; list_repos answers it with a new listing."""
    values = {
        "upstream": gap.upstream,
        "from_seq": gap.from_seq,
        "to_seq": gap.to_seq,
        "reason": gap.reason,
        "answered": answered,
    }
    db.execute(SQL["note_gap"], values)
