"""The gate: what an event does to a repo, decided from the repo's row and the event alone (design §5).

Pure: `Repo` in, `Transition(repo, effects)` out; no I/O, no clock. The index locks the rows, calls these functions event by event in
log order, and writes the effects in the same transaction. The random model in the tests calls the same functions.

`rev` is the state of the rows; `seen_rev` is the highest rev seen and neither applied nor buffered. Events are buffered only in
phase `backfill`. Leaving it without an accepted outcome raises `seen_rev` to the highest buffered rev.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from protocol.account_status import LEFT_BEHIND, is_served, status_beside
from schemas import wire
from steps.backoff import retry_seconds
from steps.gate import ratchet
from steps.gate.model import (
    Apply,
    Buffer,
    Drop,
    DropBuffered,
    DropRows,
    Effect,
    ForgetIdentity,
    Phase,
    Reason,
    Repo,
    Rules,
    Streamed,
    Transition,
)

MISSING_BLOCK = "missing_block"
"""Reason of an operation whose record block the relay left out."""

RULES = Rules()
DELETED = "deleted"
"""The status of an account whose deletion its PDS has confirmed, in phase `unavailable`."""
_NOT_THERE = frozenset({"not_found", "did_not_found", "no_pds"})
"""Statuses of an unavailable repo that a newer commit refutes."""


def unknown(did: str) -> Repo:
    """The row of a repo at its first event."""
    return Repo(did, reason=Reason.DISCOVERED, known=False)


def on_live(repo: Repo, event: Streamed, rules: Rules = RULES, size: int = 0) -> Transition:
    """A commit or #sync, in any phase. `size`: its bytes in the log."""
    if rules.replayed and repo.phase != Phase.SYNC:
        return Transition(repo, (Drop(Reason.SETTLED_BEFORE),))
    match repo.phase:
        case Phase.EXCLUDED:
            return Transition(repo, (Drop(Reason.OUTSIDE),))
        case Phase.SYNC:
            return _in_sync(repo, event, rules)
        case Phase.BACKFILL:
            return _while_backfill(repo, event, rules, size)
        case Phase.UNAVAILABLE if repo.status in _NOT_THERE and event.rev > repo.rev:
            # A verified commit: the account exists. It stays hidden until it is fetched. If the event were compared with
            # seen_rev instead, one forged rev would block it for ever.
            return _pending(replace(_seen(repo, event.rev), retry_count=0), Reason.REACTIVATED, retry_in=0.0)
        case _:
            # The fetch has not started: its snapshot contains this event, or is refused as stale.
            return Transition(_seen(repo, event.rev), (Drop(Reason.NOT_STARTED),))


def on_create(repo: Repo, attempt: int, rev: str) -> Transition:
    """Records of a snapshot (one attempt, one rev): write them unless the transition has a Drop."""
    opened = _opened(repo, attempt)
    effects: tuple[Effect, ...] = (DropBuffered(),) if opened is not repo and repo.buffered else ()
    if attempt != opened.attempt or opened.phase != Phase.BACKFILL:
        return Transition(opened, (*effects, Drop(Reason.CLOSED_ATTEMPT)))
    if rev < opened.min_rev:
        return Transition(opened, (*effects, Drop(Reason.BELOW_MIN_REV)))
    if opened.first_attempt is None:
        opened = replace(opened, first_attempt=attempt)
    return Transition(opened, effects)


def leave_out(repo: Repo, count: int, rules: Rules) -> Repo:
    """Note that the filter left out `count` records of the open attempt: they count towards its outcome."""
    if not count or rules.replayed:
        return repo
    version = rules.filter.version
    if repo.left and repo.left_filter != version:
        version = 0  # left out under several versions: which records is unknown
    return replace(repo, left_out=repo.left + count, left_attempt=repo.attempt, left_filter=version)


def awaits_facts(repo: Repo, outcome: wire.RepoOutcome) -> bool:
    """Whether the decision on this outcome needs `DatabaseFacts`."""
    opened = _opened(repo, outcome.attempt)
    return outcome.status == "synced" and opened.phase == Phase.BACKFILL and outcome.attempt == opened.attempt


def on_outcome(
    repo: Repo, outcome: wire.RepoOutcome, rows: int = 0, buffered: Sequence[Streamed] = (), rules: Rules = RULES
) -> Transition:
    """The end of an attempt. `rows`: rows of the repo with this attempt; `buffered`: its buffered events in log order."""
    opened = _opened(repo, outcome.attempt)
    if outcome.attempt != opened.attempt or opened.phase != Phase.BACKFILL:
        return Transition(opened, (Drop(Reason.CLOSED_ATTEMPT),))
    if opened is not repo or outcome.status == "synced":
        # In the live database the row's ratchet is never older. A replay adopts it: account events that this attempt
        # already reflects must not undo it.
        opened = ratchet.adopted(opened, outcome)
    if outcome.status == "synced":
        return _synced(opened, outcome, rows, buffered, rules)
    if ratchet.of_claim(outcome) != ratchet.position(opened):
        return _pending(opened, Reason.ACCOUNT_CHANGED, retry_in=0.0)
    status = status_beside(outcome.active, outcome.reason)
    reported = replace(opened, active=outcome.active, status=status, retry_count=0)
    if outcome.status != "deleted" and outcome.reason in _NOT_THERE and opened.buffered_rev > opened.rev:
        return _pending(reported, Reason.REACTIVATED, retry_in=_delay(1, opened, rules))  # it has committed since
    ended = _left(reported, Phase.UNAVAILABLE, outcome.reason or outcome.status)
    if outcome.status == "deleted":
        gone = replace(ended, active=False, status=DELETED, reason=Reason.DELETED, first_attempt=None)
        return Transition(gone, (DropBuffered(), DropRows(None)))
    return Transition(ended, (DropBuffered(),))


def on_account(repo: Repo, event: wire.AccountEvent) -> Transition:
    """#account in any phase, by the ratchet.

    A deletion or deactivation hides the repo at once and is then confirmed at the current PDS, by a separate claim: a PDS that
    the account has left sends them too, possibly after the new PDS has reported it as active.
    """
    if repo.phase == Phase.EXCLUDED:
        return Transition(repo, (Drop(Reason.OUTSIDE),))
    ratcheted, newer = ratchet.advanced(repo, event)
    if not newer:
        return Transition(ratcheted, (Drop(Reason.OLD_ACCOUNT_EVENT),))
    if is_served(event.active, event.status):
        reopened = not repo.active or repo.phase == Phase.UNAVAILABLE or not repo.known
        current = replace(ratcheted, active=True, status=status_beside(True, event.status))
        if not reopened:
            return Transition(current)
        reason = Reason.REACTIVATED if repo.known else Reason.DISCOVERED
        return _pending(replace(current, retry_count=0), reason, retry_in=0.0)
    hidden = replace(ratcheted, active=False, status=status_beside(False, event.status))
    # attempt 0: only a listing reported the deletion. It is confirmed too, since a rebuild from the log has no listings.
    if event.status in LEFT_BEHIND:
        if repo.phase == Phase.UNAVAILABLE and repo.status == DELETED and repo.attempt:
            return Transition(replace(hidden, status=DELETED))  # a deactivation does not undo it
        return _pending(replace(hidden, retry_count=0), Reason.DELETION, retry_in=0.0)
    ended = _left(hidden, Phase.UNAVAILABLE, hidden.status or "inactive")
    return Transition(ended, (DropBuffered(),) if repo.phase == Phase.BACKFILL else ())


def on_identity(repo: Repo, event: wire.IdentityEvent) -> Transition:
    """#identity in any phase, by the ratchet. The handle is a hint until it is verified both ways."""
    if repo.phase == Phase.EXCLUDED:
        return Transition(repo, (Drop(Reason.OUTSIDE),))
    ratcheted, newer = ratchet.advanced(repo, event)
    if not newer:
        return Transition(ratcheted, (Drop(Reason.OLD_ACCOUNT_EVENT),))
    if event.handle and event.handle != "handle.invalid":
        ratcheted = replace(ratcheted, handle=event.handle.lower())
    return Transition(ratcheted, (ForgetIdentity(),))


def _in_sync(repo: Repo, event: Streamed, rules: Rules) -> Transition:
    if event.rev < repo.rev or (event.rev == repo.rev and event.data == repo.data):
        return Transition(repo, (Drop(Reason.STALE_REV),))
    if event.rev == repo.rev:
        # Two commits with one rev. Fetch once: the snapshot shows which one is valid.
        if repo.from_snapshot:
            return Transition(repo, (Drop(Reason.SAME_REV_OF_SNAPSHOT),))
        return _desync(repo, event, rules)
    if isinstance(event, wire.SyncEvent):
        return Transition(_advanced(repo, event)) if event.data == repo.data else _desync(repo, event, rules)
    fits = event.prev_data == repo.data if event.prev_data is not None else event.since == repo.rev
    if not fits:
        return _desync(repo, event, rules)
    if any(op.action != "delete" and op.reason == MISSING_BLOCK for op in event.ops):
        return _desync(repo, event, rules)
    return Transition(_advanced(repo, event), (Apply(event),))


def _while_backfill(repo: Repo, event: Streamed, rules: Rules, size: int) -> Transition:
    total = size + (repo.buffered_bytes if repo.buffered else 0)
    if repo.buffered >= rules.max_buffered or total > rules.max_buffered_bytes:
        return _pending(_seen(repo, event.rev), Reason.OVERFLOW, retry_in=0.0)
    buffered = replace(
        repo, buffered=repo.buffered + 1, buffered_rev=max(repo.buffered_rev, event.rev), buffered_bytes=total
    )
    return Transition(buffered, (Buffer(event),))


def _synced(repo: Repo, outcome: wire.RepoOutcome, rows: int, buffered: Sequence[Streamed], rules: Rules) -> Transition:
    rev = outcome.rev or ""
    if repo.left and repo.left_filter != rules.filter.version:
        # The filter has changed since, and may keep now what was left out: the count proves nothing.
        return _pending(repo, Reason.FILTER, retry_in=0.0)
    if rows + repo.left != outcome.count or rev < repo.min_rev:
        return _retried(repo, Reason.INCOMPLETE, rules)
    handle = outcome.handle or repo.handle
    if repo.handle and ratchet.identity_changed(repo, outcome):
        handle = repo.handle  # the fetch may have read an older DID document than the event's
    synced = replace(
        repo,
        phase=Phase.SYNC,
        reason=Reason.SYNCED,
        active=True,
        status=repo.status if repo.active else None,  # the claim cleared it, so it was reported later
        rev=rev,
        data=outcome.data,
        commit=outcome.commit,
        commit_block=outcome.commit_block,
        from_snapshot=True,
        # Even if the snapshot was empty: live events may add rows, so no later attempt is the first.
        first_attempt=outcome.attempt if repo.first_attempt is None else repo.first_attempt,
        buffered=0,
        buffered_rev="",
        retry_count=0,
        host=outcome.host or repo.host,
        handle=handle,
        signing_key=outcome.signing_key or repo.signing_key,
    )
    effects: list[Effect] = [] if repo.first_attempt == outcome.attempt else [DropRows(outcome.attempt)]
    current, released = synced, 0
    for event in buffered:
        # After a desync the phase is pending, and on_live only raises seen_rev for the rest.
        transition = on_live(current, event, rules)
        current = transition.repo
        released += current.phase == Phase.SYNC
        effects.extend(effect for effect in transition.effects if not isinstance(effect, DropBuffered))
    effects.append(DropBuffered(released))
    return Transition(current, tuple(effects))


def _opened(repo: Repo, attempt: int) -> Repo:
    """Open an attempt newer than the row's without a claim, as when a log is replayed into another database."""
    if attempt <= repo.attempt or repo.phase == Phase.EXCLUDED:
        return repo
    return replace(
        repo,
        phase=Phase.BACKFILL,
        attempt=attempt,
        active=True,
        status=None,
        rev="",
        seen_rev="",
        buffered=0,
        buffered_rev="",
    )


def _desync(repo: Repo, event: Streamed, rules: Rules) -> Transition:
    """The event does not extend the chain: fetch again. Success does not reset the back-off, or a PDS could cause a getRepo per event."""
    if rules.replayed:
        return Transition(repo, (Drop(Reason.SETTLED_BEFORE),))
    quiet = repo.desync_age is None or repo.desync_age > rules.desync_quiet_seconds
    desyncs = 1 if quiet else repo.desyncs + 1
    delay = 0.0 if desyncs == 1 else _delay(desyncs - 1, repo, rules)
    seen = replace(_seen(repo, event.rev), desyncs=desyncs, desync_age=0.0)
    return _pending(seen, Reason.DESYNC, retry_in=delay)


def _delay(count: int, repo: Repo, rules: Rules) -> float:
    return retry_seconds(count, repo.did, rules.retry_first_seconds, rules.retry_max_seconds)


def _retried(repo: Repo, reason: Reason, rules: Rules) -> Transition:
    count = repo.retry_count + 1
    if count >= rules.max_attempts:
        return Transition(replace(_left(repo, Phase.FAILED, reason), retry_count=count), (DropBuffered(),))
    return _pending(replace(repo, retry_count=count), reason, retry_in=_delay(count, repo, rules))


def _pending(repo: Repo, reason: Reason, *, retry_in: float) -> Transition:
    if not repo.active:
        # An inactive repo is claimed only to confirm its deletion: with another reason it would never be claimed.
        reason = Reason.DELETION
    effects = (DropBuffered(),) if repo.phase == Phase.BACKFILL else ()
    return Transition(replace(_left(repo, Phase.PENDING, reason), retry_in=retry_in), effects)


def _left(repo: Repo, phase: Phase, reason: str) -> Repo:
    """Leave a phase. Buffered events, which exist only in `backfill`, count as seen."""
    seen = max(repo.seen_rev, repo.buffered_rev)
    return replace(repo, phase=phase, reason=str(reason), seen_rev=seen, buffered=0, buffered_rev="", retry_in=None)


def _advanced(repo: Repo, event: Streamed) -> Repo:
    return replace(
        repo,
        rev=event.rev,
        data=event.data,
        commit=event.commit or repo.commit,
        commit_block=event.commit_block or repo.commit_block,
        from_snapshot=False,
    )


def _seen(repo: Repo, rev: str) -> Repo:
    """Raise seen_rev to a rev above `min_rev`. Recording a lower one would only make a replay change the row."""
    return replace(repo, seen_rev=rev) if rev > repo.min_rev else repo
