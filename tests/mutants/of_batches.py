"""Mutants of what the index writes in a batch, and of the filter."""

from tests.model.model_profile import FILTERED, PRUNED, PRUNED_TWICE, UNDISTURBED
from tests.mutants.changes import always, never, removed, replaced, without
from tests.mutants.mutant import mutant

GATE = "steps.gate.transitions:"
BATCH = "steps.gate.batch:"
TABLES = "tests.model.model_tables:ModelTables."
FILTER = "tests.model.model_filters:FilterRow."

BATCHES = (
    mutant("what this batch buffered survives its drop", removed(BATCH + "_take", "buffered[0] != repo.did")),
    mutant(
        "rows buffered before a deletion survive it",
        replaced(
            BATCH + "_take",
            "{path: row for path, row in rows.items() if before is not None and row and row[5] >= before}",
            "dict(rows)",
        ),
    ),
    mutant(
        "buffered events are written before they are dropped",
        replaced(
            TABLES + "_write",
            """
if did in work.drop_buffered:
    row.buffered.clear()
for buffered_did, offset, event in work.buffered:
    if buffered_did == did:
        row.buffered.setdefault(offset, event)
""",
            """
row.buffered |= {offset: event for buffered_did, offset, event in work.buffered if buffered_did == did}
if did in work.drop_buffered:
    row.buffered.clear()
""",
        ),
    ),
    mutant(
        "buffered events are drained backwards",
        replaced(TABLES + "_facts", "sorted(row.buffered)", "sorted(row.buffered, reverse=True)"),
        **UNDISTURBED,
    ),
    mutant(
        "offsets move although the rows do not",
        replaced(
            TABLES + "index",
            "raise Crash",
            "self.offsets |= {topic: end for topic, (_, end) in spans.items()}\nraise Crash",
        ),
    ),
    mutant(
        "offsets are not conditional",
        replaced(TABLES + "_may_move", "return self.offsets[topic] == begin", "return True"),
    ),
)

FILTERS = (
    mutant("what is left out is not counted", always(GATE + "leave_out", "rules.replayed")),
    mutant("a replay leaves out what was left out", without(GATE + "leave_out", "rules.replayed"), **FILTERED),
    mutant(
        "left out by another attempt counts", always("steps.gate.model:Repo.left", "self.left_attempt == self.attempt")
    ),
    mutant("left out under another filter is accepted", never(GATE + "_synced", "repo.left_filter"), **FILTERED),
    mutant("left out under several filters is of the last", removed(GATE + "leave_out", "0"), **FILTERED),
    mutant(
        "records are counted before filters are compared",
        replaced(
            GATE + "_synced",
            "rev = outcome.rev or ''",
            "rev = outcome.rev or ''\n"
            "if rows + repo.left != outcome.count:\n    return _retried(repo, Reason.INCOMPLETE, rules)",
        ),
        **FILTERED,
    ),
    mutant("what is left out of a snapshot is written", never(BATCH + "_creates", "keeps(event.collection)")),
    mutant("the stream writes outside of the filter", never(BATCH + "_apply", "keeps(op.collection)")),
    mutant("a row outside that the stream changed stays", never(BATCH + "_apply", "rules.filter.clean"), **FILTERED),
    mutant("widening schedules nothing", never(TABLES + "carry_out", "asked.older(row)")),
    mutant("a prune of an open attempt is not counted", never(TABLES + "_prune", "repo.phase == 'backfill'"), **PRUNED),
    mutant("a prune of several filters is of the last", never(TABLES + "_prune", "repo.left_filter"), **PRUNED_TWICE),
    mutant(
        "narrowing leaves it clean",
        replaced(FILTER + "set", "before.clean and covers(chosen, before.collections)", "True"),
    ),
    mutant(
        "a walk interrupted by a change continues",
        replaced(FILTER + "set", "('', None)", "(self.walk_after or '', None)"),
        **FILTERED,
    ),
)
