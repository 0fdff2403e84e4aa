"""Durable positions of upstreams (`sluice.cursor`), stored in one transaction with the gaps before them.

One row per (flow, full URL of the upstream). An invalid position is an error: any substitute would lose events silently.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres.connection import outside_transaction, own_transaction, tuple_database
from schemas.settings import Settings
from schemas.sql import queries
from steps.cursor import Gap

SQL = queries("cursor")


class CursorUnreadable(Exception):
    """A stored position is invalid. The message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored position; `age_seconds` by the database's clock."""

    position: str
    detail: dict[str, Any]
    age_seconds: float


class CursorStore:
    """Positions of one flow; each method is its own transaction. Connects on first use, and reconnects."""

    def __init__(self, settings: Settings, flow: str) -> None:
        self._flow = flow
        self._database = tuple_database(settings, f"sluice {flow} cursor")
        self.close = self._database.close

    def load(self) -> dict[str, Stored]:
        """Upstream → its position."""
        rows = outside_transaction(self._database()).execute(SQL["load"], {"flow": self._flow})
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
        """Store positions, and the gaps before them. `answered`: store the gaps as resolved, because nothing can fill them."""
        db = self._database()
        with own_transaction(db):
            for gap in gaps:
                note_gap(db, gap, answered=answered)
            for upstream in sorted(positions):
                put(db, self._flow, upstream, str(positions[upstream]), details.get(upstream))

    def caught_up(self, upstreams: Sequence[str], time: str) -> None:
        """Record that these upstreams, without new events, are caught up at this time."""
        values = {"flow": self._flow, "upstreams": list(upstreams), "time": time}
        outside_transaction(self._database()).execute(SQL["caught_up"], values)

    def begin(self, upstream: str, position: int, detail: dict[str, Any], gap: Gap) -> None:
        """Store the first position of an upstream that is read from its tip, and the gap before it if any repo is known.

        A known repo may have been fetched before the connection; only a new listing finds its events in between.
        """
        db = self._database()
        with own_transaction(db):
            if db.execute(SQL["any_repo"]).fetchone() == (True,):
                note_gap(db, gap)
            put(db, self._flow, upstream, str(position), detail)


def put(
    db: psycopg.Connection[tuple[Any, ...]], flow: str, upstream: str, position: str, detail: dict[str, Any] | None
) -> None:
    """Store one position, in the caller's transaction."""
    text = None if detail is None else json.dumps(detail)
    db.execute(SQL["save"], {"flow": flow, "upstream": upstream, "position": position, "detail": text})


def note_gap(db: psycopg.Connection[tuple[Any, ...]], gap: Gap, *, answered: bool = False) -> None:
    """Record a gap in `sluice.stream_gap`; list_repos resolves it with a new listing."""
    values = {
        "upstream": gap.upstream,
        "from_seq": gap.from_seq,
        "to_seq": gap.to_seq,
        "reason": gap.reason,
        "answered": answered,
    }
    db.execute(SQL["note_gap"], values)
