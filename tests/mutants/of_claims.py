"""Mutants of claims, listings and control: of the model's database, which `test_gate_sql.py` holds equal to the SQL.

A claim's `phase = 'pending'` has no mutant: whatever leaves `pending` counts the attempt up or makes the repo inactive, so
that breaking it alone changes nothing that a user could see.
"""

from tests.mutants.changes import always, never, removed, replaced, without
from tests.mutants.mutant import mutant

TABLES = "tests.model.model_tables:ModelTables."

CLAIMS = (
    mutant(
        "a returned claim does not fold what was buffered",
        replaced(TABLES + "_reopen", "max(repo.seen_rev, repo.buffered_rev)", "repo.seen_rev"),
    ),
    mutant("a returned claim keeps buffered events", removed(TABLES + "_reopen", "row.buffered.clear()")),
    mutant(
        "a claim does not clear the status",
        replaced(TABLES + "claim", "None if row.repo.active else row.repo.status", "row.repo.status"),
    ),
    mutant("a claim takes another attempt's message", without(TABLES + "claim", "row.repo.attempt != attempt")),
    mutant("a claim does not count up", replaced(TABLES + "claim", "attempt + 1", "attempt")),
    mutant("a deletion cannot be claimed", without(TABLES + "claim", "row.repo.reason == 'deletion'")),
    mutant(
        "retry takes another attempt's claim",
        without(TABLES + "retry", "row.repo.attempt != attempt"),
        leap=3,
        unwell=0.4,
    ),
    mutant("retry reopens what is done", without(TABLES + "retry", "row.repo.phase != 'backfill'")),
    mutant(
        "an old outcome's offset is stored",
        without(TABLES + "produced", "row.repo.attempt == attempt"),
        leap=3,
        stop_worker=2,
    ),
    mutant("leases do not expire", replaced(TABLES + "reap", "lease or passed", "passed")),
    mutant(
        "an attempt whose outcome was passed stays open",
        replaced(TABLES + "reap", "lease or passed", "lease"),
        truncate=4,
    ),
    mutant("lost tasks are not queued again", never(TABLES + "unqueue", "self.rows[did].repo.phase == 'pending'")),
    mutant("an operator's retry forgets a deletion", always(TABLES + "retry_failed", "row.repo.active")),
)

LISTINGS = (
    mutant("a listing does not raise seen_rev", removed(TABLES + "_listed", "self._set(row, seen_rev=entry.rev)")),
    mutant(
        "a listing is forgotten by a repo fetched again",
        removed(TABLES + "lost_events", "self._set(row, seen_rev=row.listed_rev)"),
    ),
    mutant(
        "a lost event is not seen",
        replaced(
            TABLES + "lost_events",
            "self._set(row, phase='pending', reason='lost_event', seen_rev=row.listed_rev)",
            "self._set(row, phase='pending', reason='lost_event')",
        ),
        loss=0.4,
        leap=3,
        listing=5,
        stale=0.5,
    ),
    mutant("a lost event is not looked for", never(TABLES + "lost_events", "row.repo.phase == 'sync'")),
    mutant("stale snapshots clear at once", always(TABLES + "stale", "self.now - GRACE")),
    mutant("stale snapshots never clear", never(TABLES + "stale", "self.now - GRACE")),
    mutant(
        "ten minutes of stale snapshots do not restart",
        replaced(
            TABLES + "_save",
            "new.phase in ('sync', 'unavailable') or new.seen_rev > old.seen_rev",
            "new.phase == 'sync'",
        ),
        never(TABLES + "_set", "row.repo.seen_rev"),
        never(TABLES + "_reopen", "seen > repo.seen_rev"),
        forge=3,
        leap=3,
        unwell=0.3,
    ),
)
