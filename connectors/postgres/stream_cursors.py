"""Durable positions of upstreams (`sluice.cursor`), stored in one transaction with the gaps before them.

One row per (flow, full URL of the upstream, share of its stream). An invalid position is an error: any substitute would lose events
silently.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres.connection import outside_transaction, own_transaction, tuple_database
from schemas.settings import Settings
from schemas.sql import queries
from steps.cursor import Gap
from steps.shares import WHOLE, Mark, Share, passed, start

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
    """Positions of one flow and share; each method is its own transaction. Connects on first use, and reconnects."""

    def __init__(self, settings: Settings, flow: str, share: Share = WHOLE) -> None:
        self._flow = flow
        self._share = share
        self._database = tuple_database(settings, f"sluice {flow} cursor")
        self.close = self._database.close

    def load(self) -> dict[str, Stored]:
        """Upstream → its position."""
        outside_transaction(self._database())
        return {upstream: stored for upstream, share, stored in self._rows() if share == self._share}

    def starts(self, upstreams: Collection[str]) -> dict[str, Mark]:
        """Upstream → where the share starts, which becomes its own row. Raises CursorUnreadable."""
        found: dict[str, Mark] = {}
        rows = self._rows()
        for upstream, marks in _marks(self._flow, rows, upstreams).items():
            begun = start(self._share, marks)
            if begun is None:
                continue
            found[upstream] = begun.mark
            if not begun.own:
                # no later than what any row has read: `lost_events` must not compare listings with what comes
                time = min(str(stored.detail.get("time", "")) for url, _, stored in rows if url == upstream)
                db, detail = self._database(), {"epoch": begun.mark.epoch, "time": time}
                with own_transaction(db):
                    if begun.gap:
                        _note_if_any_repo(db, Gap(upstream, None, None, begun.gap))
                    put(db, self._flow, upstream, str(begun.mark.seq), detail, share=self._share)
        return found

    def retire(self, upstreams: Collection[str]) -> None:
        """Remove the rows of other numbers of shares that all shares of this number have passed."""
        if not any(passed(self._share, marks) for marks in _marks(self._flow, self._rows(), upstreams).values()):
            return
        db = self._database()
        with own_transaction(db):
            db.execute(SQL["lock"])  # two numbers that run at once must not remove each other's rows
            for upstream, marks in _marks(self._flow, self._rows(), upstreams).items():
                for old in passed(self._share, marks):
                    db.execute(SQL["retire"], _values(self._flow, old) | {"upstream": upstream})

    def _rows(self) -> list[tuple[str, Share, Stored]]:
        rows = self._database().execute(SQL["load"], {"flow": self._flow})
        return [(row[0], Share(row[1], row[2]), Stored(*row[3:])) for row in rows]

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
                put(db, self._flow, upstream, str(positions[upstream]), details.get(upstream), share=self._share)

    def caught_up(self, upstreams: Sequence[str], time: str) -> None:
        """Record that these upstreams, without new events, are caught up at this time."""
        values = _values(self._flow, self._share) | {"upstreams": list(upstreams), "time": time}
        outside_transaction(self._database()).execute(SQL["caught_up"], values)

    def begin(self, upstream: str, position: int, detail: dict[str, Any], gap: Gap | None) -> int:
        """Store the first position of an upstream, and the gap before it if any repo is known. Returns the epoch.

        A known repo may have been fetched before the connection; only a new listing finds its events in between. Shares that begin
        at the same time agree on one epoch.
        """
        db = self._database()
        with own_transaction(db):
            db.execute(SQL["lock"])
            (epoch,) = db.execute(SQL["epoch"], {"flow": self._flow, "upstream": upstream}).fetchone() or (None,)
            detail = detail if epoch is None else detail | {"epoch": epoch}
            if gap is not None:
                _note_if_any_repo(db, gap)
            put(db, self._flow, upstream, str(position), detail, share=self._share)
        return int(detail["epoch"])


def _marks(
    flow: str, rows: Iterable[tuple[str, Share, Stored]], upstreams: Collection[str]
) -> dict[str, dict[Share, Mark]]:
    found: dict[str, dict[Share, Mark]] = {}
    for upstream, share, stored in rows:
        if upstream not in upstreams:
            continue
        if not (stored.position.isascii() and stored.position.isdigit()):
            raise CursorUnreadable(
                f"the {flow} cursor of {upstream} is {stored.position[:80]!r}, which is no sequence number;"
                f" correct it with `sluice cursors set {flow} {upstream} SEQ`"
            )
        epoch = stored.detail.get("epoch", 0)
        mark = Mark(epoch if isinstance(epoch, int) else 0, int(stored.position))
        found.setdefault(upstream, {})[share] = mark
    return found


def put(
    db: psycopg.Connection[tuple[Any, ...]],
    flow: str,
    upstream: str,
    position: str,
    detail: dict[str, Any] | None,
    *,
    share: Share = WHOLE,
) -> None:
    """Store one position, in the caller's transaction."""
    text = None if detail is None else json.dumps(detail)
    db.execute(SQL["save"], _values(flow, share) | {"upstream": upstream, "position": position, "detail": text})


def _values(flow: str, share: Share) -> dict[str, Any]:
    return {"flow": flow, "share": share.number, "shares": share.count}


def _note_if_any_repo(db: psycopg.Connection[tuple[Any, ...]], gap: Gap) -> None:
    """Record a gap, unless nothing is mirrored yet: then the first listing finds everything."""
    if db.execute(SQL["any_repo"]).fetchone() == (True,):
        note_gap(db, gap)


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
