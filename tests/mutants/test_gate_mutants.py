"""Breaking any one rule of the gate makes the model fail: each mutant must be caught by some schedule.

Two conditions are not alone in what they prevent, so breaking one of them changes nothing that a user could see:
- a claim's `phase = 'pending'`: whatever leaves `pending` either counts the attempt up or makes the repo inactive;
- a worker's check of a snapshot's rev, and the index's two: only without any of them a stale snapshot gets in (likewise
  the index's check of a create's phase and of its rev). They are broken together here.
"""

import json
from pathlib import Path

import pytest

from tests.model.model_profile import FILTERED, PRUNED, UNDISTURBED
from tests.mutants.patches import Edit, Mutant, filters, gate, killed_by, ratchet, settle, tables, upstream_state
from tests.support.size import sized

SCHEDULES = 4000
SEEDS: dict[str, int] = sized(json.loads(Path(__file__).with_name("killing_seeds.json").read_text("utf-8")), {})
"""Mutant → a seed that kills it soon: a shortcut for `make test`, not needed where it no longer does."""

NO_WORKER_CHECK = Edit("tests.model.model_workers", "if commit.rev < job.min_rev:", "if False:")
CREATE_CHECK = Edit("steps.gate.transitions", "if rev < opened.min_rev:", "if False:")
OUTCOME_CHECK = Edit(
    "steps.gate.transitions",
    "if rows + repo.left != outcome.count or rev < repo.min_rev:",
    "if rows + repo.left != outcome.count:",
)

MUTANTS = [
    # seen_rev
    gate(
        "pending does not raise seen_rev",
        "return Transition(_seen(repo, event.rev), (Drop(Reason.NOT_STARTED),))",
        "return Transition(repo, (Drop(Reason.NOT_STARTED),))",
    ),
    gate(
        "the event that desyncs is not seen",
        "seen = replace(_seen(repo, event.rev), desyncs=desyncs",
        "seen = replace(repo, desyncs=desyncs",
    ),
    gate("a commit of what was not found is only seen", "case Phase.UNAVAILABLE if repo", "case _ if False and repo"),
    gate(
        "leaving backfill does not fold what was buffered",
        "seen = max(repo.seen_rev, repo.buffered_rev)",
        "seen = repo.seen_rev",
    ),
    gate(
        "overflow does not note its event as seen",
        "return _pending(_seen(repo, event.rev), Reason.OVERFLOW",
        "return _pending(repo, Reason.OVERFLOW",
    ),
    gate(
        "overflow drops the event and continues",
        "return _pending(_seen(repo, event.rev), Reason.OVERFLOW, retry_in=0.0)",
        "return Transition(repo, (Drop(Reason.OVERFLOW),))",
    ),
    gate(
        "leaving backfill keeps buffered events",
        "effects = (DropBuffered(),) if repo.phase == Phase.BACKFILL else ()\n    return Transition(replace(_left",
        "effects = ()\n    return Transition(replace(_left",
    ),
    tables(
        "a returned claim does not fold what was buffered",
        "seen = max(repo.seen_rev, repo.buffered_rev)",
        "seen = repo.seen_rev",
    ),
    tables(
        "a returned claim keeps buffered events",
        "        row.buffered.clear()\n        row.queued_at",
        "        row.queued_at",
    ),
    tables("a listing does not raise seen_rev", "self._set(row, seen_rev=entry.rev)", "pass"),
    tables("a listing is forgotten by a repo fetched again", "self._set(row, seen_rev=row.listed_rev)", "pass"),
    tables("a lost event is not seen", 'reason="lost_event", seen_rev=row.listed_rev)', 'reason="lost_event")'),
    tables(
        "a lost event is not looked for", 'elif row.repo.phase == "sync" and row.listed_since <', "elif False and 0 <"
    ),
    tables("stale snapshots clear at once", "elif row.stale_since < self.now - GRACE:", "else:"),
    tables("stale snapshots never clear", "elif row.stale_since < self.now - GRACE:", "elif False:"),
    Mutant(
        "ten minutes of stale snapshots do not restart",
        (
            Edit(
                "tests.model.model_tables",
                'if new.phase in ("sync", "unavailable") or new.seen_rev > old.seen_rev:',
                'if new.phase == "sync":',
            ),
            Edit(
                "tests.model.model_tables",
                'if changes.get("seen_rev", "") > row.repo.seen_rev and row.repo.phase != "backfill":',
                "if False:",
            ),
            Edit("tests.model.model_tables", "if seen > repo.seen_rev:", "if False:"),
        ),
    ),
    # live, in sync
    gate(
        "an old rev is applied",
        "if event.rev < repo.rev or (event.rev == repo.rev and event.data == repo.data):",
        "if event.rev == repo.rev and event.data == repo.data:",
    ),
    gate(
        "equal rev with other data is a duplicate",
        "if event.rev < repo.rev or (event.rev == repo.rev and event.data == repo.data):",
        "if event.rev <= repo.rev:",
    ),
    gate("a snapshot does not decide its rev for good", "        if repo.from_snapshot:\n", "        if False:\n"),
    gate("the chain is not checked", "    if not fits:\n", "    if False:\n"),
    gate("legacy events fit always", "else event.since == repo.rev", "else True"),
    gate("a missing block is no desync", "if any(op.action != ", "if False and any(op.action != "),
    gate(
        "#sync with other data advances",
        "if event.data == repo.data else _desync(repo, event, rules)",
        "if True else None",
    ),
    gate(
        "#sync with equal data is dropped", "return Transition(_advanced(repo, event)) if", "return Transition(repo) if"
    ),
    gate(
        "an empty commit does not advance",
        "    return Transition(_advanced(repo, event), (Apply(event),))",
        "    return Transition(_advanced(repo, event) if event.ops else repo, (Apply(event),))",
    ),
    # live, in backfill
    gate(
        "events of a backfill are applied at once",
        "            return _while_backfill(repo, event, rules, size)",
        "            return _in_sync(repo, event, rules)",
    ),
    gate(
        "events of a backfill are forgotten",
        "return Transition(buffered, (Buffer(event),))",
        "return Transition(repo)",
    ),
    # creates
    gate(
        "a create of any attempt is written",
        "if attempt != opened.attempt or opened.phase != Phase.BACKFILL:",
        "if opened.phase != Phase.BACKFILL:",
    ),
    Mutant(
        "a create of a closed attempt is written, whatever its rev",  # each alone is enough to keep old rows out
        (
            CREATE_CHECK,
            Edit(
                "steps.gate.transitions",
                "if attempt != opened.attempt or opened.phase != Phase.BACKFILL:",
                "if attempt != opened.attempt:",
            ),
        ),
    ),
    Mutant("the creates' rev is never compared with min_rev", (NO_WORKER_CHECK, CREATE_CHECK, OUTCOME_CHECK)),
    # outcomes
    gate(
        "an outcome of an older attempt is accepted",
        "    if outcome.attempt != opened.attempt or opened.phase != Phase.BACKFILL:\n",
        "    if opened.phase != Phase.BACKFILL:\n",
    ),
    gate(
        "an outcome of a closed attempt is accepted",
        "    if outcome.attempt != opened.attempt or opened.phase != Phase.BACKFILL:\n",
        "    if outcome.attempt != opened.attempt:\n",
    ),
    gate("rows are not counted", "if rows + repo.left != outcome.count or rev", "if rev"),
    Mutant("an empty snapshot's rev is not compared with min_rev", (NO_WORKER_CHECK, OUTCOME_CHECK)),
    gate(
        "rows of earlier attempts stay",
        "[] if repo.first_attempt == outcome.attempt else [DropRows(outcome.attempt)]",
        "[]",
    ),
    gate(
        "an empty snapshot is no first attempt",
        "first_attempt=outcome.attempt if repo.first_attempt is None else repo.first_attempt",
        "first_attempt=repo.first_attempt",
    ),
    gate("buffered events are not drained", "    for event in buffered:\n", "    for event in ():\n"),
    gate(
        "buffered events are drained without re-reading the phase",
        "        transition = on_live(current, event, rules)\n",
        "        transition = _in_sync(current, event, rules)\n",
    ),
    tables(
        "buffered events are drained backwards",
        "[row.buffered[offset] for offset in sorted(row.buffered)]",
        "[row.buffered[offset] for offset in sorted(row.buffered, reverse=True)]",
    ),
    gate(
        "a relay that no longer follows an account hides it",
        "if is_served(event.active, event.status):",
        "if event.active:",
    ),
    gate("an outcome clears a status reported since", "status=repo.status if repo.active else None", "status=None"),
    tables(
        "a claim does not clear the status",
        "status = None if row.repo.active else row.repo.status",
        "status = row.repo.status",
    ),
    gate(
        "an unavailable outcome ignores the ratchet",
        "    if ratchet.of_claim(outcome) != ratchet.position(opened):\n",
        "    if False:\n",
    ),
    gate(
        "a deletion leaves rows",
        "return Transition(gone, (DropBuffered(), DropRows(None)))",
        "return Transition(gone, (DropBuffered(),))",
    ),
    gate(
        "an unavailable outcome keeps buffered events",
        "    return Transition(ended, (DropBuffered(),))\n\n\ndef on_account",
        "    return Transition(ended)\n\n\ndef on_account",
    ),
    # replays
    gate(
        "a newer attempt does not open",
        "    if attempt <= repo.attempt:\n        return repo",
        "    if True:\n        return repo",
    ),
    gate(
        "an opened attempt keeps rev",
        '        status=None,\n        rev="",\n        seen_rev="",',
        '        status=None,\n        seen_rev="",',
    ),
    ratchet("a ratchet is not adopted where it is newer", "newer = time > repo.account_time or", "newer = False and"),
    gate("the ratchet is not adopted", '    if opened is not repo or outcome.status == "synced":\n', "    if False:\n"),
    ratchet("the ratchet is lowered by an outcome", "    if not newer:\n        return repo\n", ""),
    gate("a replay buffers and notes as seen", "if rules.replayed and repo.phase != Phase.SYNC:", "if False:"),
    gate("a replay desyncs", "    if rules.replayed:\n        return", "    if False:\n        return"),
    # accounts
    ratchet(
        "account events have no ratchet",
        "    if seq <= max(repo.account_seq if source == here else -1, more.seqs.get(source, -1)):\n",
        "    if False:\n",
    ),
    ratchet(
        "within a relay time decides",
        "if source != relay and time <= newest:",
        "if time <= newest:",
    ),
    ratchet(
        "between relays seq decides",
        "if source != relay and time <= newest:",
        "if source != relay and seq <= repo.account_seq:",
    ),
    ratchet(
        "between relays the last that comes wins",
        "if source != relay and time <= newest:",
        "if False:",
    ),
    ratchet(
        "a restarted sequence is the old one",
        'return f"{event.relay}#{event.epoch}" if event.epoch else event.relay',
        "return event.relay",
    ),
    ratchet(
        "an identity makes older account events of other relays old",
        "relay, newest = more.last.get(kind, (here, highest))",
        "relay, newest = here, highest",
    ),
    ratchet(
        "what was seen of other relays is forgotten",
        '    if here not in ("", source):\n        more.seqs[here] = max(repo.account_seq, more.seqs.get(here, -1))\n',
        "",
    ),
    upstream_state(
        "a time ahead of its receipt is believed",
        "event = stamped(event, time=min(event.time, now))",
        "pass",
    ),
    Mutant(
        "an account event that another relay has brought is a duplicate",
        (
            Edit(
                "tests.model.model_relays",
                "    return None\n",
                "    return (event.did, event.time, event.active) if isinstance(event, wire.AccountEvent) else None\n",
            ),
        ),
    ),
    Mutant(
        "a status that hides is kept beside an active account",
        (Edit("protocol.account_status", "return status if status in NOT_FOLLOWED else None", "return status"),),
    ),
    gate(
        "an inactive account's backfill continues",
        '    ended = _left(hidden, Phase.UNAVAILABLE, hidden.status or "inactive")\n    return Transition(ended, (DropBuffered(),) if repo.phase == Phase.BACKFILL else ())',
        "    return Transition(hidden)",
    ),
    gate("a deletion is not confirmed", "    if event.status in LEFT_BEHIND:\n        if", "    if False:\n        if"),
    gate("reactivation is forgotten", "    if not reopened:\n", "    if True:\n"),
    gate(
        "an inactive repo waits for another reason",
        "    if not repo.active:\n        # An",
        "    if False:\n        # An",
    ),
    # a batch
    gate(
        "facts are not waited for",
        'return outcome.status == "synced" and opened.phase',
        "return False and opened.phase",
    ),
    settle(
        "what this batch buffered survives its drop",
        "writes.buffered = [buffered for buffered in writes.buffered if buffered[0] != repo.did]",
        "pass",
    ),
    settle(
        "rows buffered before a deletion survive it",
        "path: row for path, row in rows.items() if before is not None and row and row[5] >= before",
        "path: row for path, row in rows.items()",
    ),
    tables(
        "buffered events are written before they are dropped",
        "        if did in work.drop_buffered:\n            row.buffered.clear()\n        for buffered_did, offset, event in work.buffered:\n            if buffered_did == did:\n                row.buffered.setdefault(offset, event)\n",
        "        for buffered_did, offset, event in work.buffered:\n            if buffered_did == did:\n                row.buffered.setdefault(offset, event)\n        if did in work.drop_buffered:\n            row.buffered.clear()\n",
    ),
    tables(
        "offsets move although the rows do not",
        "        if crash:\n            raise Crash\n        self.rows |= rows\n",
        "        if crash:\n            self.offsets |= {topic: end for topic, (_, end) in spans.items()}\n            raise Crash\n        self.rows |= rows\n",
    ),
    tables("offsets are not conditional", "return self.offsets[topic] == begin", "return True"),
    # filters
    gate(
        "what is left out is not counted", "    if not count or rules.replayed:\n        return repo", "    return repo"
    ),
    gate("a replay leaves out what was left out", "    if not count or rules.replayed:", "    if not count:"),
    Mutant(
        "left out by another attempt counts",
        (
            Edit(
                "steps.gate.model",
                "return self.left_out if self.left_attempt == self.attempt else 0",
                "return self.left_out",
            ),
        ),
    ),
    gate(
        "left out under another filter is accepted",
        "if repo.left and repo.left_filter != rules.filter.version:\n        #",
        "if False:\n        #",
    ),
    gate(
        "left out under several filters is of the last",
        "        version = 0  # left",
        "        pass  # left",
    ),
    gate(
        "records are counted before filters are compared",
        "    if repo.left and repo.left_filter != rules.filter.version:\n        #",
        "    if rows + repo.left != outcome.count:\n        return _retried(repo, Reason.INCOMPLETE, rules)\n"
        "    if repo.left and repo.left_filter != rules.filter.version:\n        #",
    ),
    settle(
        "what is left out of a snapshot is written",
        "if keeps is not None and not keeps(event.collection):",
        "if False:",
    ),
    settle(
        "the stream writes outside of the filter",
        "if keeps is not None and not keeps(op.collection):",
        "if False:",
    ),
    settle("a row outside that the stream changed stays", "if not rules.filter.clean:", "if False:"),
    tables("widening schedules nothing", 'row.repo.phase == "sync" and asked.older(row)', "False"),
    tables("a prune of an open attempt is not counted", 'if count and repo.phase == "backfill":', "if False:"),
    tables(
        "a prune of several filters is of the last",
        "of = 0 if repo.left and",
        "of = 0 if False and",
    ),
    filters("narrowing leaves it clean", "clean = before.clean and covers(chosen, before.collections)", "clean = True"),
    filters(
        "a walk interrupted by a change continues",
        'self.walk_after, self.prune_after = "", None',
        'self.walk_after, self.prune_after = self.walk_after or "", None',
    ),
    # claims and control
    tables(
        "a claim takes another attempt's message",
        "if row is None or row.repo.attempt != attempt or row.repo.phase",
        "if row is None or row.repo.phase",
    ),
    tables("a claim does not count up", "attempt=attempt + 1, buffered=0", "attempt=attempt, buffered=0"),
    tables(
        "a deletion cannot be claimed",
        'if not (row.repo.active or row.repo.reason == "deletion") or row.next',
        "if not row.repo.active or row.next",
    ),
    tables(
        "retry takes another attempt's claim",
        '        if row.repo.attempt != attempt or row.repo.phase != "backfill":\n            return None\n        return self._reopen',
        '        if row.repo.phase != "backfill":\n            return None\n        return self._reopen',
    ),
    tables(
        "retry reopens what is done",
        '        if row.repo.attempt != attempt or row.repo.phase != "backfill":\n            return None\n        return self._reopen',
        "        if row.repo.attempt != attempt:\n            return None\n        return self._reopen",
    ),
    tables(
        "an old outcome's offset is stored",
        'if row.repo.attempt == attempt and row.repo.phase == "backfill":\n            row.produced',
        'if row.repo.phase == "backfill":\n            row.produced',
    ),
    tables(
        "leases do not expire",
        "lease = row.produced is None and row.lease_until is not None and row.lease_until < self.now",
        "lease = False",
    ),
    tables(
        "an attempt whose outcome was passed stays open",
        "            passed = row.produced is not None and",
        "            passed = False and",
    ),
    tables(
        "lost tasks are not queued again",
        '            if self.rows[did].repo.phase == "pending":\n                self.rows[did].queued_at = None',
        "            pass",
    ),
    tables(
        "an operator's retry forgets a deletion", 'reason="retry" if row.repo.active else "deletion"', 'reason="retry"'
    ),
]


FOCUS: dict[str, dict[str, float]] = {
    "a replay leaves out what was left out": FILTERED,
    "left out under another filter is accepted": FILTERED,
    "left out under several filters is of the last": FILTERED,
    "records are counted before filters are compared": FILTERED,
    "a row outside that the stream changed stays": FILTERED,
    "a walk interrupted by a change continues": FILTERED,
    "a prune of an open attempt is not counted": PRUNED,
    "a prune of several filters is of the last": PRUNED,
    "a lost event is not seen": {"loss": 0.4, "leap": 3, "listing": 5, "stale": 0.5},
    "ten minutes of stale snapshots do not restart": {"forge": 3, "leap": 3, "unwell": 0.3},
    "equal rev with other data is a duplicate": {"rewrite": 6, "loss": 0.5, "filter": 0},
    "legacy events fit always": {"loss": 0.3},
    "a missing block is no desync": {"odd_commit": 4},
    "#sync with other data advances": {"odd_commit": 4},
    "#sync with equal data is dropped": {"sync": 4},
    "the creates' rev is never compared with min_rev": {"stale": 0.6, "loss": 0.0},
    "an outcome of an older attempt is accepted": {"crash_worker": 3, "stop_worker": 3, "leap": 2},
    "rows are not counted": {"truncate": 3},
    "an empty snapshot is no first attempt": {"empty": 1.0, "loss": 0.3},
    "an attempt whose outcome was passed stays open": {"truncate": 4},
    "buffered events are drained backwards": UNDISTURBED,
    "an unavailable outcome ignores the ratchet": {
        "account": 6,
        "loss": 0.5,
        "write": 2,
        "takedown": 0,
        "restart": 0,
        "clock": 0,
        "relays": 1,
    },
    "reactivation is forgotten": {"account": 4},
    "a create of any attempt is written": {"stop_worker": 4, "claim": 9, "fetch": 9, "control": 9, "repos": 1},
    "the ratchet is lowered by an outcome": {"account": 5, "again": 5},
    "retry takes another attempt's claim": {"leap": 3, "unwell": 0.4},
    "an old outcome's offset is stored": {"leap": 3, "stop_worker": 2},
    "buffered events are drained without re-reading the phase": {"loss": 0.3, "write": 12},
    "an opened attempt keeps rev": {"go_back": 3, "leap": 2},
    "within a relay time decides": {"skewed": True, "clock": 6, "account": 6, "relays": 1, "restart": 0},
    "between relays seq decides": {"relays": 2, "account": 6},
    "between relays the last that comes wins": {"relays": 2, "account": 6, "takedown": 4, "lagging": True},
    "a restarted sequence is the old one": {"restart": 3, "account": 6, "skewed": False},
    "an identity makes older account events of other relays old": {
        "relays": 2,
        "lagging": True,
        "takedown": 6,
        "identity": 9,
        "account": 0,
        "skewed": False,
        "loss": 0.0,
    },
    "what was seen of other relays is forgotten": {"relays": 2, "skewed": True, "clock": 6, "account": 6, "reread": 6},
    "a time ahead of its receipt is believed": {
        "relays": 1,
        "skewed": True,
        "clock": 6,
        "takedown": 6,
        "restart": 4,
        "account": 4,
    },
    "an account event that another relay has brought is a duplicate": {
        "relays": 2,
        "skewed": True,
        "clock": 6,
        "account": 6,
        "takedown": 6,
        "lagging": True,
    },
    "a status that hides is kept beside an active account": {"account": 6},
}
"""Mutants that need rare faults meet them oftener."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_caught(mutant: Mutant) -> None:
    """G1, G2, G4, P1, P3, C1, C2, C4, N9: the rule is needed, and the model sees it."""
    assert killed_by(mutant, SCHEDULES, FOCUS.get(mutant.name), SEEDS.get(mutant.name)), (
        f"no schedule of {SCHEDULES} caught: {mutant.name}"
    )
