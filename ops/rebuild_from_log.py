"""`sluice replay --all --into URL`: a new database from the log alone.

Reads `firehose_backfill` to its end, then `firehose_live`, then `label_live`, through the gate with its ordinary rules: a newer
attempt needs no claim, and live events before its snapshot are dropped by their rev. Repos that reach `sync` are the same as in
the live tables. The target stores the index's own offsets, so a rebuild that was stopped resumes, and an index that is started on
the finished database follows the log from there.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import psycopg

from appview import state as appview_state
from appview.plugin import AppView
from appview.rebuild import reconcile_all
from connectors.kafka.offsets import Offsets
from connectors.postgres.connection import connect
from connectors.postgres.migrate import migrate
from flows.index.apply import rules_of
from flows.index.sink import IndexWriter
from flows.index.store import IndexStore
from ops.replay import SQL, Progress, RefusedCounter, replay_spans
from schemas.errors import OperatorError
from schemas.settings import Settings
from schemas.topics import FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE

ORDER = (FIREHOSE_BACKFILL, FIREHOSE_LIVE, LABEL_LIVE)

Ends = dict[str, dict[int, int]]


@dataclass(slots=True)
class Rebuilt:
    """The result. `unfinished`: DID → phase and reason of repos that the log leaves without an end state."""

    messages: int = 0
    refused: int = 0
    resumed: bool = False
    phases: dict[str, int] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    appview: bool = False  # the AppView's tables are filled as well


def rebuild(settings: Settings, target: str, progress: Progress) -> Rebuilt:
    """Rebuild into the database `target`; with SLUICE_APPVIEW also the AppView's tables.

    Raises OperatorError if the log no longer begins at 0 or the target is not empty; LogUnavailable, AppviewUnavailable.
    """
    if settings.shards:
        raise OperatorError(
            "SLUICE_SHARDS is set: `replay --all` fills one database only; unset it to fill one with all repos"
        )
    into = settings.model_copy(update={"database": target})
    offsets = Offsets(settings)
    ends = _whole_log(offsets)
    migrate(target)
    done = Rebuilt()
    with connect(target, "sluice rebuild") as db:
        ends, done.resumed = _begin(db, offsets.cluster, ends)
        state = appview_state.begin(into)
        tables, refusals = IndexStore(into, offsets.cluster, AppView(into)), RefusedCounter()
        writer = IndexWriter(into, tables, rules_of(settings), refusals)
        for topic in ORDER:
            name = settings.topic(topic)
            starts = tables.starts({(name, part): (0, end) for part, end in ends[topic].items()})
            spans = {part: (starts[name, part], end) for part, end in ends[topic].items()}
            for count in replay_spans(into, writer, topic, spans):
                done.messages += count
                progress(done.messages)
        tables.close()
        if state.active:
            reconcile_all(db, lambda _: None)
            done.appview = state.current
        db.execute(SQL["end_rebuild"])
        done.refused = refusals.count
        done.phases = {str(phase): int(count) for phase, count in db.execute(SQL["phases"])}
        done.unfinished = {str(did): f"{phase} ({reason})" for did, phase, reason in db.execute(SQL["not_in_sync"])}
    return done


def as_text(done: Rebuilt) -> str:
    phases = ", ".join(f"{phase} {count}" for phase, count in sorted(done.phases.items()))
    lines = [f"{did}  {why}" for did, why in done.unfinished.items()]
    lines.append(f"{done.messages} messages replayed, {done.refused} of them refused; repos: {phases or 'none'}")
    if done.appview:
        lines.append("the AppView's tables are filled as well")
    if done.unfinished:
        lines.append(f"{len(done.unfinished)} repos did not reach an end state; the repos in sync are correct")
    return "\n".join(lines)


def _whole_log(offsets: Offsets) -> Ends:
    """The end of every partition, the backfill topic's first: a repo without a snapshot there is unfinished. Raises OperatorError."""
    ends: Ends = {}
    for topic in ORDER:
        parts = offsets.parts([topic])
        ends[topic] = {part: end for (_, part), end in offsets.ends(parts).items()}
        for (_, part), start in offsets.starts(parts).items():
            if start > 0:
                raise OperatorError(
                    f"{topic}/{part} begins at {start}: retention has removed what a rebuild needs;"
                    " fill the new database from the network instead"
                )
    return ends


def _begin(db: psycopg.Connection[tuple[Any, ...]], cluster: str, ends: Ends) -> tuple[Ends, bool]:
    """The ends to read up to, and whether a rebuild resumes: then they are those of its start. Raises OperatorError."""
    row = db.execute(SQL["rebuilding"]).fetchone()
    if row is not None:
        detail = row[0]
        if detail["cluster"] != cluster:
            raise OperatorError("--into: this database has an unfinished rebuild from another log; give an empty one")
        return {topic: {int(part): end for part, end in of.items()} for topic, of in detail["ends"].items()}, True
    if db.execute(SQL["is_empty"]).fetchone() != (True,):
        raise OperatorError("--into: this database is not empty; give an empty one")
    db.execute(SQL["begin_rebuild"], {"detail": json.dumps({"cluster": cluster, "ends": ends})})
    return ends, False
