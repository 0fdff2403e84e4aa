"""Mutants of what commits, #sync, snapshots and outcomes do to a repo.

A worker's check of a snapshot's rev and the index's two are not alone in what they prevent: only without any of them a
stale snapshot gets in. They are broken together, like the index's check of a create's phase and of its rev.
"""

from tests.mutants.changes import always, never, replaced, without, without_argument
from tests.mutants.mutant import mutant

GATE = "steps.gate.transitions:"

NO_WORKER_CHECK = never("tests.model.model_workers:Workers.fetch", "commit.rev < job.min_rev")
NO_CREATE_CHECK = never(GATE + "on_create", "rev < opened.min_rev")
NO_OUTCOME_CHECK = without(GATE + "_synced", "rev < repo.min_rev")

SEEN = (
    mutant(
        "pending does not raise seen_rev",
        replaced(
            GATE + "on_live",
            "Transition(_seen(repo, event.rev), (Drop(Reason.NOT_STARTED),))",
            "Transition(repo, (Drop(Reason.NOT_STARTED),))",
        ),
    ),
    mutant("the event that desyncs is not seen", replaced(GATE + "_desync", "_seen(repo, event.rev)", "repo")),
    mutant("a commit of what was not found is only seen", never(GATE + "on_live", "repo.status in _NOT_THERE")),
    mutant(
        "leaving backfill does not fold what was buffered",
        replaced(GATE + "_left", "max(repo.seen_rev, repo.buffered_rev)", "repo.seen_rev"),
    ),
    mutant(
        "overflow does not note its event as seen", replaced(GATE + "_while_backfill", "_seen(repo, event.rev)", "repo")
    ),
    mutant(
        "overflow drops the event and continues",
        replaced(
            GATE + "_while_backfill",
            "_pending(_seen(repo, event.rev), Reason.OVERFLOW, retry_in=0.0)",
            "Transition(repo, (Drop(Reason.OVERFLOW),))",
        ),
    ),
    mutant("leaving backfill keeps buffered events", never(GATE + "_pending", "repo.phase == Phase.BACKFILL")),
)

IN_SYNC = (
    mutant("an old rev is applied", without(GATE + "_in_sync", "event.rev < repo.rev")),
    mutant(
        "equal rev with other data is a duplicate",
        replaced(
            GATE + "_in_sync",
            "event.rev < repo.rev or (event.rev == repo.rev and event.data == repo.data)",
            "event.rev <= repo.rev",
        ),
        rewrite=6,
        loss=0.5,
        filter=0,
    ),
    mutant("a snapshot does not decide its rev for good", never(GATE + "_in_sync", "repo.from_snapshot")),
    mutant("the chain is not checked", never(GATE + "_in_sync", "fits")),
    mutant("legacy events fit always", replaced(GATE + "_in_sync", "event.since == repo.rev", "True"), loss=0.3),
    mutant("a missing block is no desync", never(GATE + "_in_sync", "op.reason == MISSING_BLOCK"), odd_commit=4),
    mutant(
        "#sync with other data advances",
        replaced(
            GATE + "_in_sync",
            "return Transition(_advanced(repo, event)) if event.data == repo.data else _desync(repo, event, rules)",
            "return Transition(_advanced(repo, event))",
        ),
        odd_commit=4,
    ),
    mutant(
        "#sync with equal data is dropped",
        replaced(GATE + "_in_sync", "Transition(_advanced(repo, event))", "Transition(repo)"),
        sync=4,
    ),
    mutant(
        "an empty commit does not advance",
        replaced(
            GATE + "_in_sync",
            "Transition(_advanced(repo, event), (Apply(event),))",
            "Transition(_advanced(repo, event) if event.ops else repo, (Apply(event),))",
        ),
    ),
    mutant("a replay desyncs", never(GATE + "_desync", "rules.replayed")),
)

IN_BACKFILL = (
    mutant(
        "events of a backfill are applied at once",
        replaced(GATE + "on_live", "_while_backfill(repo, event, rules, size)", "_in_sync(repo, event, rules)"),
    ),
    mutant(
        "events of a backfill are forgotten",
        replaced(GATE + "_while_backfill", "Transition(buffered, (Buffer(event),))", "Transition(repo)"),
    ),
    mutant("a replay buffers and notes as seen", never(GATE + "on_live", "rules.replayed")),
)

CREATES = (
    mutant(
        "a create of any attempt is written",
        without(GATE + "on_create", "attempt != opened.attempt"),
        stop_worker=4,
        claim=9,
        fetch=9,
        control=9,
        repos=1,
    ),
    mutant(
        "a create of a closed attempt is written, whatever its rev",  # each alone is enough to keep old rows out
        NO_CREATE_CHECK,
        without(GATE + "on_create", "opened.phase != Phase.BACKFILL"),
    ),
    mutant(
        "the creates' rev is never compared with min_rev",
        NO_WORKER_CHECK,
        NO_CREATE_CHECK,
        NO_OUTCOME_CHECK,
        stale=0.6,
        loss=0.0,
    ),
)

OUTCOMES = (
    mutant(
        "an outcome of an older attempt is accepted",
        without(GATE + "on_outcome", "outcome.attempt != opened.attempt"),
        crash_worker=3,
        stop_worker=3,
        leap=2,
    ),
    mutant(
        "an outcome of a closed attempt is accepted", without(GATE + "on_outcome", "opened.phase != Phase.BACKFILL")
    ),
    mutant("rows are not counted", without(GATE + "_synced", "rows + repo.left != outcome.count"), truncate=3),
    mutant("an empty snapshot's rev is not compared with min_rev", NO_WORKER_CHECK, NO_OUTCOME_CHECK),
    mutant("rows of earlier attempts stay", always(GATE + "_synced", "repo.first_attempt == outcome.attempt")),
    mutant(
        "an empty snapshot is no first attempt",
        never(GATE + "_synced", "repo.first_attempt is None"),
        empty=1.0,
        loss=0.3,
    ),
    mutant(
        "buffered events are not drained",
        replaced(GATE + "_synced", "current, released = synced, 0", "current, released, buffered = synced, 0, ()"),
    ),
    mutant(
        "buffered events are drained without re-reading the phase",
        replaced(GATE + "_synced", "on_live(current, event, rules)", "_in_sync(current, event, rules)"),
        loss=0.3,
        write=12,
    ),
    mutant("an outcome clears a status reported since", never(GATE + "_synced", "repo.active")),
    mutant(
        "an unavailable outcome ignores the ratchet",
        never(GATE + "on_outcome", "ratchet.of_claim(outcome)"),
        account=6,
        loss=0.5,
        write=2,
        takedown=0,
        restart=0,
        clock=0,
        relays=1,
    ),
    mutant(
        "a deletion leaves rows",
        replaced(GATE + "on_outcome", "(DropBuffered(), DropRows(None))", "(DropBuffered(),)"),
    ),
    mutant(
        "an unavailable outcome keeps buffered events",
        replaced(GATE + "on_outcome", "Transition(ended, (DropBuffered(),))", "Transition(ended)"),
    ),
    mutant("a newer attempt does not open", always(GATE + "_opened", "attempt <= repo.attempt")),
    mutant("an opened attempt keeps rev", without_argument(GATE + "_opened", "rev"), go_back=3, leap=2),
    mutant("facts are not waited for", replaced(GATE + "awaits_facts", "outcome.status == 'synced'", "False")),
)
